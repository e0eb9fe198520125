"""Putting tensors together, taking them apart, and changing their axes. Padding stays at the end of every sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from returnn_hydra.frontend.ambient import behavior_at_least
from returnn_hydra.frontend.create import convert_to_tensor, range_over_dim
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.elementwise import merged_dims, where
from returnn_hydra.frontend.tensor import Tensor, dtype_name, torch_dtype


def matched_dim(new: Dim, out_dim: Dim | None) -> Dim:
    """`out_dim` if given (it becomes the same dim as `new`, or must have its size), else `new`."""
    if out_dim is None:
        return new
    if out_dim.dimension is not None:
        if new.dimension is not None and new.dimension != out_dim.dimension:
            raise ValueError(f"out dim {out_dim} has size {out_dim.dimension}, but the result has {new.dimension}")
        return out_dim
    if out_dim != new:
        out_dim.declare_same_as(new)
    return out_dim


def lengths_dim(name: str, lengths: Tensor, out_dim: Dim | None = None) -> Dim:
    """A new dim with these lengths (int tensor, any device)."""
    raw = lengths.raw_tensor.to(torch.int32).cpu()
    size = Tensor(name, dims=lengths.dims, dtype="int32", raw_tensor=raw)
    if out_dim is not None and out_dim.dimension is None:
        out_dim.reset_raw()
        out_dim.dyn_size_ext = size
        return out_dim
    return out_dim or Dim(size, name=name)


def expand_dim(source: Tensor, dim: Dim) -> Tensor:
    """Repeat along a new dim: a static one before the feature dim, one with lengths after the last such dim."""
    if dim in source.dims:
        raise ValueError(f"expand_dim: {source} has {dim} already")
    axis = len(source.dims)
    if dim.dimension is not None and source.feature_dim_axis is not None:
        axis = source.feature_dim_axis
    elif dim.is_dynamic():
        axis = max((n + 1 for n, other in enumerate(source.dims) if other.is_dynamic()), default=axis)
    dims = [*source.dims[:axis], dim, *source.dims[axis:]]
    raw = source.raw_tensor.unsqueeze(axis)
    sizes = [-1] * len(dims)
    sizes[axis] = dim.get_dim_value()
    return source._new(dims, raw.expand(sizes))


def expand_dims(source: Tensor, dims: Sequence[Dim]) -> Tensor:
    """Repeat along several new dims."""
    for dim in dims:
        source = expand_dim(source, dim)
    return source


def squeeze(source: Tensor, axis: Dim) -> Tensor:
    """Drop a dim of size 1."""
    number = source.get_axis_from_description(axis)
    if source.raw_tensor.shape[number] != 1:
        raise ValueError(f"squeeze: {axis} of {source} has size {source.raw_tensor.shape[number]}, not 1")
    return source._new([d for n, d in enumerate(source.dims) if n != number], source.raw_tensor.squeeze(number))


def reshape(source: Tensor, in_dims: Sequence[Dim], out_dims: Sequence[Dim]) -> Tensor:
    """Replace neighbouring dims by others with as many values."""
    numbers = [source.get_axis_from_description(d) for d in in_dims]
    first = min(numbers)
    rest = [n for n in range(len(source.dims)) if n not in numbers]
    position = sum(n < first for n in rest)
    order = [*rest[:position], *numbers, *rest[position:]]
    raw = source.raw_tensor.permute(order)
    dims = [*(source.dims[n] for n in rest[:position]), *out_dims, *(source.dims[n] for n in rest[position:])]
    sizes = [*raw.shape[:position], *(d.get_dim_value() for d in out_dims), *raw.shape[position + len(numbers) :]]
    return source._new(dims, raw.reshape(sizes), name="reshape")


def merge_dims(source: Tensor, *, dims: Sequence[Dim], out_dim: Dim | None = None) -> tuple[Tensor, Dim]:
    """Several dims into one, the last one running fastest; padding stays inside."""
    dims = list(dims)
    if len(dims) == 1 and out_dim is None:
        return source, dims[0]
    if out_dim is None:
        out_dim = dims[0]
        for dim in dims[1:]:
            out_dim = out_dim * dim
        dynamic = [d for d in dims if d.need_masking() or d.is_batch_dim()]
        if dynamic and not (len(dynamic) == 1 and dynamic[0] is dims[0] and dims[0].need_masking()):
            total = 1
            for dim in dims:
                total *= source.raw_tensor.shape[source.get_axis_from_description(dim)]
            out_dim = lengths_dim("merged", convert_to_tensor(total, dtype="int32", device="cpu"))
    elif out_dim.dimension is None and not out_dim.is_dim_known():
        total = 1
        for dim in dims:
            total *= source.raw_tensor.shape[source.get_axis_from_description(dim)]
        out_dim = lengths_dim("merged", convert_to_tensor(total, dtype="int32", device="cpu"), out_dim)
    numbers = [source.get_axis_from_description(d) for d in dims]
    position = sum(n < min(numbers) for n in range(len(source.dims)) if n not in numbers)
    rest = [n for n in range(len(source.dims)) if n not in numbers]
    raw = source.raw_tensor.permute([*rest[:position], *numbers, *rest[position:]])
    raw = raw.flatten(position, position + len(numbers) - 1)
    out = source._new(
        [*(source.dims[n] for n in rest[:position]), out_dim, *(source.dims[n] for n in rest[position:])],
        raw,
        name="merge_dims",
    )
    if source.feature_dim in dims:
        out.feature_dim = out_dim
    return out, out_dim


def split_dims(
    source: Tensor,
    *,
    axis: Dim,
    dims: Sequence[Dim],
    pad_to_multiples: bool | None = None,
    pad_value: float | None = None,
) -> Tensor:
    """One dim into several, the last one running fastest.

    Args:
        dims: one of them may still be unknown; it gets the size that is left.
        pad_to_multiples: pad the axis so that it divides (default: if it is dynamic).
    """
    number = source.get_axis_from_description(axis)
    raw = source.raw_tensor
    known = 1
    for dim in dims:
        known *= dim.get_dim_value() if dim.is_dim_known() else 1
    unknown = [d for d in dims if not d.is_dim_known()]
    size = raw.shape[number]
    if size % known:
        if not (axis.is_dynamic() if pad_to_multiples is None else pad_to_multiples):
            raise ValueError(f"split_dims: {axis} of size {size} does not divide into {list(dims)}")
        padding = [0, 0] * (raw.ndim - 1 - number) + [0, known - size % known]
        raw = torch.nn.functional.pad(raw, padding, value=0 if pad_value is None else pad_value)
        size = raw.shape[number]
    for dim in unknown:
        derived = axis.ceildiv_right(known) if axis.is_dynamic() else None
        if derived is not None:
            dim.declare_same_as(derived)
        else:
            dim.size = size // known
    sizes = [d.get_dim_value() for d in dims]
    raw = raw.reshape([*raw.shape[:number], *sizes, *raw.shape[number + 1 :]])
    out = source._new([*source.dims[:number], *dims, *source.dims[number + 1 :]], raw, name="split_dims")
    return out


def split(source: Tensor, *, axis: Dim, out_dims: Sequence[Dim]) -> tuple[Tensor, ...]:
    """Cut a static dim into pieces."""
    number = source.get_axis_from_description(axis)
    sizes = [d.get_dim_value() for d in out_dims]
    if sum(sizes) != source.raw_tensor.shape[number]:
        raise ValueError(f"split: pieces of {sizes} do not add up to {axis} of size {source.raw_tensor.shape[number]}")
    pieces = source.raw_tensor.split(sizes, dim=number)
    results = []
    for piece, dim in zip(pieces, out_dims, strict=True):
        out = source.copy_template_replace_dim_tag(number, dim, name="split")
        out.raw_tensor = piece
        results.append(out)
    return tuple(results)


def unstack(source: Tensor, *, axis: Dim) -> tuple[Tensor, ...]:
    """One tensor per index of a dim."""
    number = source.get_axis_from_description(axis)
    dims = [d for n, d in enumerate(source.dims) if n != number]
    return tuple(source._new(dims, raw) for raw in source.raw_tensor.unbind(number))


def stack(sources: Sequence[Tensor], *, out_dim: Dim | None = None) -> tuple[Tensor, Dim]:
    """Several tensors along a new first dim."""
    if not sources:
        raise ValueError("stack: no tensors given")
    out_dim = out_dim or Dim(len(sources), name="stack")
    if out_dim.dimension is None and not out_dim.is_dim_known():
        out_dim.size = len(sources)
    dims = merged_dims(sources)
    raw = torch.stack([t.copy_compatible_to_dims_raw(dims, unbroadcast=True) for t in sources])
    out = sources[0]._new([out_dim, *dims], raw, name="stack", dtype=dtype_name(raw))
    out.feature_dim = None
    return out, out_dim


def concat_features(*sources: Tensor, allow_broadcast: bool = False) -> Tensor:
    """Concatenate the feature dims."""
    pairs = []
    for source in sources:
        if source.feature_dim is None:
            raise ValueError(f"concat_features: {source} has no feature dim")
        pairs.append((source, source.feature_dim))
    out, out_dim = concat(*pairs, allow_broadcast=allow_broadcast)
    out.feature_dim = out_dim
    return out


def concat(
    *sources: tuple[Tensor, Dim],
    allow_broadcast: bool = False,
    out_dim: Dim | None = None,
    handle_dynamic_dims: bool | None = None,
) -> tuple[Tensor, Dim]:
    """Concatenate along a dim of each tensor; with lengths, every sequence directly after the end of the one before."""
    if not sources:
        raise ValueError("concat: no tensors given")
    new = sources[0][1]
    for _, dim in sources[1:]:
        new = new + dim
    out_dim = matched_dim(new, out_dim)
    first, first_dim = sources[0]
    others: list[Dim] = []
    for source, dim in sources:
        others += [d for d in source.dims if d not in others and d != dim]
    number = first.get_axis_from_description(first_dim)
    order = [d for d in first.dims if d != first_dim]
    order += [d for d in others if d not in order]
    raws = []
    for source, dim in sources:
        target = [*order[:number], dim, *order[number:]]
        raws.append(source.copy_compatible_to_dims_raw(target, unbroadcast=True))
    dims = [*order[:number], out_dim, *order[number:]]
    out = first._new(dims, name="concat")
    dynamic = any(dim.need_masking() for _, dim in sources[:-1]) and handle_dynamic_dims is not False
    raw = torch.cat(raws, dim=number)
    if dynamic:
        raw = _concat_sequences(raws, [dim for _, dim in sources], order, number, out_dim)
    result = out._new(dims, raw, dtype=dtype_name(raw))
    result.feature_dim = out.feature_dim
    if dynamic:  # RETURNN puts the sequences together by masked_select, which has axes in this order
        sizes = [dim.dyn_size_ext for _, dim in sources]
        lengths = list(dict.fromkeys(d for size in sizes if size is not None for d in size.dims))
        result = result.copy_transpose([*lengths, out_dim, *(d for d in order if d not in lengths)])
        result.feature_dim = None
    return result, out_dim


def _concat_sequences(
    raws: list[torch.Tensor], axes: list[Dim], order: list[Dim], number: int, out_dim: Dim
) -> torch.Tensor:
    """Each sequence's pieces directly one after the other, padding (0) behind the last one."""
    device = str(raws[0].device)
    size = out_dim.get_dim_value()
    positions = torch.arange(size, device=device)
    view = [1] * (len(order) + 1)
    view[number] = size
    index = positions.view(view)
    result: torch.Tensor | None = None
    offset: Any = 0
    for raw, axis in zip(raws, axes, strict=True):
        lengths = axis.get_size_tensor(device=device)
        length = lengths.copy_compatible_to_dims_raw(order).unsqueeze(number) if lengths.dims else lengths.raw_tensor
        inside = (index >= offset) & (index < offset + length)
        source = (index - offset).clamp(0, max(raw.shape[number] - 1, 0))
        sizes = [*raw.shape[:number], size, *raw.shape[number + 1 :]]
        piece = torch.gather(raw, number, source.expand(sizes)) if raw.shape[number] else raw.new_zeros(sizes)
        result = torch.where(inside, piece, torch.zeros_like(piece) if result is None else result)
        offset = offset + length
    assert result is not None
    return result


def pad(
    source: Tensor,
    *,
    axes: Sequence[Dim],
    padding: Any,
    out_dims: Sequence[Dim] | None = None,
    mode: str = "constant",
    value: Any = None,
    handle_dynamic_dims: bool | None = None,
) -> tuple[Tensor, list[Dim]]:
    """Lengthen axes to the left and right.

    Args:
        padding: (left, right) for every axis, ints or dims.
        mode: "constant", "reflect" or "replicate".
        handle_dynamic_dims: the right padding comes directly after the end of every sequence, and lengths grow.
            Without it
            (RETURNN's default below behaviour version 21) it comes after the padding, and all lengths become the
            full one.
    """
    if axes and isinstance(padding[0], (int, Dim)):
        padding = [tuple(padding)] * len(axes)
    new_dims: list[Dim] = []
    out = source
    for number, (axis, (left, right)) in enumerate(zip(axes, padding, strict=True)):
        given = out_dims[number] if out_dims else None
        handle = behavior_at_least(21) if handle_dynamic_dims is None else handle_dynamic_dims
        out, dim = _pad_axis(out, axis, left, right, given, mode, value, handle)
        new_dims.append(dim)
    return out, new_dims


def _pad_axis(
    source: Tensor, axis: Dim, left: Any, right: Any, out_dim: Dim | None, mode: str, value: Any, handle_lengths: bool
) -> tuple[Tensor, Dim]:
    number = source.get_axis_from_description(axis)
    before, after = (p.get_dim_value() if isinstance(p, Dim) else int(p) for p in (left, right))
    new = _plus(right, _plus(axis, left, at_left=True))
    if axis.need_masking() and after and not handle_lengths:
        total = before + source.raw_tensor.shape[number] + after
        new = lengths_dim("pad", convert_to_tensor(total, dtype="int32", device="cpu"))
    out_dim = matched_dim(new, out_dim)
    raw = source.raw_tensor
    fill = value.raw_tensor if isinstance(value, Tensor) and not value.dims else value
    if mode == "constant":
        raw = _pad_constant(raw, number, before, after, 0 if fill is None or isinstance(fill, Tensor) else fill)
    else:
        raw = raw.movedim(number, -1)
        lead = raw.shape[:-1]
        flat = raw.reshape(1, -1, raw.shape[-1])
        flat = torch.nn.functional.pad(flat, (before, after), mode=mode)
        raw = flat.reshape(*lead, -1).movedim(-1, number)
    out = source.copy_template_replace_dim_tag(number, out_dim)
    out.raw_tensor = raw
    if mode == "constant" and isinstance(fill, Tensor):
        inside = (range_over_dim(out_dim, device=source.device) >= before) & (
            range_over_dim(out_dim, device=source.device) < before + source.raw_tensor.shape[number]
        )
        out = where(inside, out, fill, allow_broadcast_all_sources=True).copy_transpose(out.dims)
    if axis.need_masking() and handle_lengths and after and mode == "constant":
        lengths = axis.get_size_tensor(device=source.device)
        positions = range_over_dim(out_dim, device=source.device)
        end = lengths + before
        real = _outer_less(positions, end)
        out = where(real, out, 0 if value is None else value, allow_broadcast_all_sources=True).copy_transpose(out.dims)
        out.feature_dim = out_dim if source.feature_dim == axis else source.feature_dim
    return out, out_dim


def _outer_less(positions: Tensor, end: Tensor) -> Tensor:
    """positions < end without positions being a class index of a dim that `end` depends on."""
    raw = positions.raw_tensor < end.raw_tensor[..., None]
    return Tensor("less", dims=[*end.dims, *positions.dims], dtype="bool", raw_tensor=raw)


def _pad_constant(raw: torch.Tensor, axis: int, before: int, after: int, value: Any) -> torch.Tensor:
    padding = [0, 0] * (raw.ndim - 1 - axis) + [before, after]
    if isinstance(value, torch.Tensor):
        value = value.item()
    return torch.nn.functional.pad(raw, padding, value=value)


def _plus(operand: Any, dim: Dim, at_left: bool = False) -> Dim:
    if isinstance(operand, int) and operand == 0:
        return dim
    operand = operand if isinstance(operand, (int, Dim)) else int(operand)
    return operand + dim if at_left else dim + operand


def replace_dim(source: Tensor, *, in_dim: Dim, out_dim: Dim | None = None) -> tuple[Tensor, Dim]:
    """The same values with another dim."""
    if in_dim not in source.dims and source.sparse_dim is not None and source.sparse_dim == in_dim:
        out = source.copy()
        out.sparse_dim = out_dim or in_dim.copy(same_as_self=False)
        return out, out.sparse_dim
    number = source.get_axis_from_description(in_dim)
    if out_dim is None:
        out_dim = in_dim.copy(same_as_self=False, description="new-dim")
    elif not out_dim.is_dim_known():
        out_dim.derive_from(in_dim)
    out = source.copy_template_replace_dim_tag(number, out_dim)
    out.raw_tensor = source.raw_tensor
    return out, out_dim


def replace_dim_v2(
    source: Tensor, *, in_dim: Dim, out_dim: Dim, allow_expand: bool = True, allow_shrink: bool = True
) -> Tensor:
    """The same values with another dim, padded with 0 or cut to its size.

    From behaviour version 21 on, padding begins directly after the end of every sequence.
    """
    number = source.get_axis_from_description(in_dim)
    if not out_dim.is_dim_known():
        out_dim.declare_same_as(in_dim)
    size = out_dim.get_dim_value()
    if source.raw_tensor.shape[number] < size and behavior_at_least(21):
        source = source.copy_masked(0, dims=[in_dim])
    raw = source.raw_tensor
    if raw.shape[number] < size:
        if not allow_expand:
            raise ValueError(f"replace_dim_v2: {out_dim} is longer than {in_dim}")
        raw = _pad_constant(raw, number, 0, size - raw.shape[number], 0)
    elif raw.shape[number] > size:
        if not allow_shrink:
            raise ValueError(f"replace_dim_v2: {out_dim} is shorter than {in_dim}")
        raw = raw.narrow(number, 0, size)
    out = source.copy_template_replace_dim_tag(number, out_dim)
    out.raw_tensor = raw
    return out


def shift_right(source: Tensor, *, axis: Dim, pad_value: Any, amount: int = 1) -> Tensor:
    """Every frame `amount` later; the last ones fall out."""
    number = source.get_axis_from_description(axis)
    size = source.raw_tensor.shape[number]
    value = pad_value.raw_tensor.item() if isinstance(pad_value, Tensor) else pad_value
    raw = _pad_constant(source.raw_tensor.narrow(number, 0, max(size - amount, 0)), number, min(amount, size), 0, value)
    return source._new(source.dims, raw)


def shift_left(source: Tensor, *, axis: Dim, pad_value: Any, amount: int = 1) -> Tensor:
    """Every frame `amount` earlier; `pad_value` from the end of every sequence on."""
    number = source.get_axis_from_description(axis)
    size = source.raw_tensor.shape[number]
    value = pad_value.raw_tensor.item() if isinstance(pad_value, Tensor) else pad_value
    kept = source.raw_tensor.narrow(number, min(amount, size), max(size - amount, 0))
    out = source._new(source.dims, _pad_constant(kept, number, 0, min(amount, size), value))
    if not axis.need_masking():
        return out
    inside = _outer_less(
        range_over_dim(axis, device=source.device), axis.get_size_tensor(device=source.device) - amount
    )
    return where(inside, out, value, allow_broadcast_all_sources=True).copy_transpose(source.dims)


def reverse_sequence(tensor: Tensor, *, axis: Dim, handle_dynamic_dims: bool = True) -> Tensor:
    """Every sequence backwards; padding stays at the end."""
    from returnn_hydra.frontend.indexing import gather

    number = tensor.get_axis_from_description(axis)
    if not (handle_dynamic_dims and axis.need_masking()):
        return tensor._new(tensor.dims, tensor.raw_tensor.flip(number))
    positions = range_over_dim(axis, device=tensor.device)
    lengths = axis.get_size_tensor(device=tensor.device)
    raw = (lengths.raw_tensor[..., None] - 1 - positions.raw_tensor) % max(axis.get_dim_value(), 1)
    indices = Tensor("reversed", dims=[*lengths.dims, axis], dtype=dtype_name(raw), sparse_dim=axis, raw_tensor=raw)
    return gather(tensor, indices=indices, axis=axis).copy_transpose(tensor.dims)


def flip(source: Tensor, *, axis: Dim) -> Tensor:
    """Every sequence backwards."""
    return reverse_sequence(source, axis=axis)


def window(
    source: Tensor,
    *,
    spatial_dim: Dim,
    window_dim: Dim,
    window_right: Dim | int | None = None,
    window_left: Dim | int | None = None,
    padding: str = "same",
    pad_value: float | None = None,
    stride: int = 1,
    out_spatial_dim: Dim | None = None,
    use_mask: bool | None = None,
) -> tuple[Tensor, Dim]:
    """The neighbourhood of every frame: a new dim `window_dim` with frames t - left .. t + right.

    Frames outside a sequence are `pad_value` (0); padding behind the end counts as outside from behaviour version
    23 on.
    """
    size = window_dim.get_dim_value()
    left, right = _window_sides(size, window_left, window_right)
    masked = behavior_at_least(23, "rf_use_mask") if use_mask is None else use_mask
    if masked and spatial_dim.need_masking():
        source = source.copy_masked(0 if pad_value is None else pad_value, dims=[spatial_dim])
    number = source.get_axis_from_description(spatial_dim)
    raw = source.raw_tensor
    if padding.lower() == "same":
        raw = _pad_constant(raw, number, left, right, 0 if pad_value is None else pad_value)
        new = spatial_dim.ceildiv_right(stride)
    else:
        new = (spatial_dim - window_dim + 1).ceildiv_right(stride)
    out_dim = matched_dim(new, out_spatial_dim)
    raw = raw.unfold(number, size, stride)
    raw = raw.narrow(number, 0, out_dim.get_dim_value())
    out = source.copy_template_replace_dim_tag(number, out_dim, name="window")
    result = out._new([*out.dims, window_dim], raw)
    if stride != 1:
        return result.copy_move_axis(len(result.dims) - 1, number + 1), out_dim
    # RETURNN's window dim comes before the spatial dim, and both to where the first of them would be.
    first = number if source.feature_dim_axis is None else min(number, source.feature_dim_axis)
    order = [dim for dim in out.dims if dim != out_dim]
    return result.copy_transpose([*order[:first], window_dim, out_dim, *order[first:]]), out_dim


def _window_sides(size: int, left: Dim | int | None, right: Dim | int | None) -> tuple[int, int]:
    before = left.get_dim_value() if isinstance(left, Dim) else left
    after = right.get_dim_value() if isinstance(right, Dim) else right
    if before is None:
        before = (size - 1) // 2 if after is None else size - 1 - after
    if after is None:
        after = size - 1 - before
    if before + after + 1 != size:
        raise ValueError(f"window: left {before} + 1 + right {after} is not the window size {size}")
    return before, after


def cum_concat_step(
    source: Tensor, *, prev_accum: Tensor, axis: Dim, out_spatial_dim: Dim | None = None
) -> tuple[Tensor, Dim]:
    """Append one frame to what was accumulated along `axis`."""
    new = matched_dim(axis + 1, out_spatial_dim)
    number = prev_accum.get_axis_from_description(axis)
    frame = expand_dim(source, Dim(1, name="frame"))
    one = next(d for d in frame.dims if d not in source.dims)
    out, dim = concat((prev_accum, prev_accum.dims[number]), (frame, one), out_dim=new, allow_broadcast=True)
    return out, dim


def repeat(
    values: Tensor,
    *,
    in_spatial_dim: Dim,
    repeats: Tensor,
    out_spatial_dim: Dim | None = None,
    max_len_factor: int | None = None,
) -> tuple[Tensor, Dim]:
    """Every frame `repeats` times."""
    from returnn_hydra.frontend.elementwise import where as where_
    from returnn_hydra.frontend.indexing import gather
    from returnn_hydra.frontend.reduce import reduce_sum

    if in_spatial_dim.need_masking():
        repeats = where_(in_spatial_dim.get_mask(device=repeats.device), repeats, 0)
    total = reduce_sum(repeats, axis=in_spatial_dim)
    total.sparse_dim = None
    out_dim = lengths_dim("repeat", total, out_spatial_dim)
    others = [d for d in repeats.dims if d != in_spatial_dim]
    raw = repeats.copy_compatible_to_dims_raw([*others, in_spatial_dim]).cumsum(-1)
    positions = torch.arange(out_dim.get_dim_value(), device=raw.device)
    wanted = positions.expand(*raw.shape[:-1], -1).contiguous()
    index = torch.searchsorted(raw.contiguous(), wanted.to(raw.dtype), right=True).clamp(max=max(raw.shape[-1] - 1, 0))
    indices = Tensor("repeat", dims=[*others, out_dim], dtype="int64", sparse_dim=in_spatial_dim, raw_tensor=index)
    return gather(values, indices=indices, axis=in_spatial_dim), out_dim


def real_as_complex(x: Tensor, *, pair_dim: Dim) -> Tensor:
    """A dim of size 2 (real, imaginary) becomes the complex value."""
    number = x.get_axis_from_description(pair_dim)
    raw = torch.view_as_complex(x.raw_tensor.movedim(number, -1).contiguous())
    return x._new([d for n, d in enumerate(x.dims) if n != number], raw, dtype=dtype_name(raw))


def complex_as_real(x: Tensor, *, out_dim: Dim | None = None) -> tuple[Tensor, Dim]:
    """A complex value becomes a last dim (real, imaginary)."""
    out_dim = out_dim or Dim(2, name="complex")
    raw = torch.view_as_real(x.raw_tensor)
    return x._new([*x.dims, out_dim], raw, dtype=dtype_name(raw)), out_dim


def make_complex(real: Tensor, imag: Tensor) -> Tensor:
    """real + i imag."""
    dims = merged_dims((real, imag))
    raw = torch.complex(*(t.copy_compatible_to_dims_raw(dims, unbroadcast=True).contiguous() for t in (real, imag)))
    return real._new(dims, raw, dtype=dtype_name(raw))


def search_sorted(
    sorted_seq: Tensor, values: Tensor, *, axis: Dim, side: str = "left", out_dtype: str = "int32"
) -> Tensor:
    """Where `values` would be inserted into the sorted dim `axis` of `sorted_seq`."""
    common = [d for d in sorted_seq.dims if d != axis]
    rest = [d for d in values.dims if d not in common]
    keys = sorted_seq.copy_compatible_to_dims_raw([*common, axis]).contiguous()
    wanted = values.copy_compatible_to_dims_raw([*common, *rest])
    wanted = wanted.expand([*(d.get_dim_value() for d in common), *wanted.shape[len(common) :]])
    flat = wanted.reshape(*wanted.shape[: len(common)], -1).contiguous()
    index = torch.searchsorted(keys, flat.to(keys.dtype), side=side).reshape(wanted.shape).to(torch_dtype(out_dtype))
    return Tensor("search_sorted", dims=[*common, *rest], dtype=out_dtype, sparse_dim=axis, raw_tensor=index)


def expand_make_non_empty(source: Tensor, *, axis: Dim, out_dim: Dim | None = None) -> tuple[Tensor, Dim]:
    """At least one frame along `axis`, so that indexing works; a tensor with frames stays as it is."""
    if axis.get_dim_value() > 0:
        return source, axis
    out, dims = pad(source, axes=[axis], padding=[(0, 1)], out_dims=[out_dim] if out_dim else None)
    return out, dims[0]
