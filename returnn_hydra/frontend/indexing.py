"""Gather, scatter, slices, masks as selections, packing, and class indices as vectors."""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from typing import Any

import torch

from returnn_hydra.frontend.ambient import behavior_at_least
from returnn_hydra.frontend.arrays import lengths_dim, matched_dim, merge_dims
from returnn_hydra.frontend.create import convert_to_tensor, full, range_over_dim
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.elementwise import compare, logical_and, where
from returnn_hydra.frontend.tensor import Tensor, dtype_name, torch_dtype


def gather(source: Tensor, *, indices: Tensor | int, axis: Dim | None = None, clip_to_valid: bool = False) -> Tensor:
    """The values at `indices` of a dim; dims that both have are batch dims.

    Args:
        axis: default: the dim that the indices are indices of (`sparse_dim`).
        clip_to_valid: indices behind the end of a sequence mean its last frame.
    """
    if isinstance(indices, int):
        if axis is None:
            raise ValueError("gather: needs axis with an int as index")
        number = source.get_axis_from_description(axis)
        raw = source.raw_tensor.select(number, indices)
        return source._new([d for n, d in enumerate(source.dims) if n != number], raw, name="gather")
    if axis is None:
        axis = indices.sparse_dim
        if axis is None:
            raise ValueError(f"gather: needs axis; the indices {indices} have no sparse_dim")
    number = source.get_axis_from_description(axis)
    axis = source.dims[number]
    if clip_to_valid:
        indices = _clipped(indices, axis)
    common = [d for d in source.dims if d in indices.dims and d != axis]
    new = [d for d in indices.dims if d not in common]
    before = [d for d in source.dims[:number] if d not in common]
    after = [d for d in source.dims[number + 1 :] if d not in common]
    index = indices.copy_compatible_to_dims_raw([*common, *new]).long()
    values = source.copy_compatible_to_dims_raw([*common, axis, *before, *after])
    index = index.to(values.device)
    raw = _batched_gather(values, index, len(common), len(new))
    current = [*common, *new, *before, *after]
    dims = _gather_order(source.dims, number, new, current)
    out = source._new(current, raw, name="gather")
    out = out.copy_transpose(dims)
    if source.feature_dim is not None and source.feature_dim == axis:
        out.feature_dim = None
    if out.feature_dim is None and indices.feature_dim is not None and indices.feature_dim in out.dims:
        out.feature_dim = indices.feature_dim
    return out


def _clipped(indices: Tensor, axis: Dim) -> Tensor:
    from returnn_hydra.frontend.create import last_frame_position_of_dim
    from returnn_hydra.frontend.elementwise import clip_by_value

    last = last_frame_position_of_dim(axis, device=indices.device)
    if isinstance(last, Tensor):
        last = last.copy()
        last.sparse_dim = None
    return clip_by_value(indices, 0, last, allow_broadcast_all_sources=True)


def _batched_gather(values: torch.Tensor, index: torch.Tensor, num_common: int, num_new: int) -> torch.Tensor:
    """values (common..., N, rest...), index (common..., new...) -> (common..., new..., rest...)."""
    if num_common == 0:
        return values[index]
    if values.ndim == num_common + 1:
        flat = index.flatten(num_common) if num_new else index.unsqueeze(-1)
        return torch.gather(values.expand(*index.shape[:num_common], -1), num_common, flat).reshape(index.shape)
    grids = []
    for axis in range(num_common):
        shape = [1] * index.ndim
        shape[axis] = index.shape[axis]
        grids.append(torch.arange(index.shape[axis], device=index.device).view(shape))
    return values[(*grids, index)]


def _gather_order(source_dims: Sequence[Dim], number: int, new: list[Dim], current: list[Dim]) -> list[Dim]:
    order = [d for d in source_dims[:number] if d in current]
    order += [d for d in new if d not in order]
    order += [d for d in source_dims[number + 1 :] if d not in order]
    return order


def slice(
    source: Tensor,
    *,
    axis: Dim,
    start: int | Tensor | None = None,
    end: int | Tensor | None = None,
    step: int | Tensor | None = None,
    size: int | Tensor | Dim | None = None,
    out_dim: Dim | None = None,
) -> tuple[Tensor, Dim]:
    """Frames start .. end-1 of a dim (or `size` of them).

    Negative ints count from the end of every sequence; tensors give a start or an end per sequence.
    """
    if isinstance(size, Dim):
        out_dim = out_dim or size
        size = size.dimension if size.dimension is not None else size.get_size_tensor(device=source.device)
    if isinstance(start, Tensor) or isinstance(size, Tensor) or isinstance(end, Tensor):
        return _slice_per_sequence(source, axis, start, end, size, out_dim)
    step = 1 if step is None else int(step)
    number = source.get_axis_from_description(axis)
    new, first = _sliced_dim(axis, start or 0, end, size)
    length = new.get_dim_value()
    if step != 1:
        new = new.ceildiv_right(step)
    out_dim = matched_dim(new, out_dim)
    raw = source.raw_tensor.narrow(number, min(first, source.raw_tensor.shape[number]), length)
    if step != 1:
        raw = raw[(*[_ALL] * number, _every(step))]
    out = source.copy_template_replace_dim_tag(number, out_dim)
    out.raw_tensor = raw
    return out, out_dim


_ALL = builtins.slice(None)


def _every(step: int) -> Any:
    return builtins.slice(None, None, step)


def _sliced_dim(axis: Dim, start: int, end: int | None, size: int | None) -> tuple[Dim, int]:
    """The dim of the result and the first index."""
    longest = axis.get_dim_value()
    first = start if start >= 0 else longest + start
    if size is not None:
        return Dim(min(size, max(longest - first, 0)), name="slice"), first
    new = axis
    if start > 0:
        new = axis.sub_left(start)
    if start < 0 or (end is not None and end >= 0):
        stop = longest if end is None else end if end >= 0 else longest + end
        return Dim(max(min(stop, longest) - first, 0), name="slice"), first
    if end is not None:
        new = new.sub_right(-end)
    return new, first


def _slice_per_sequence(
    source: Tensor, axis: Dim, start: Any, end: Any, size: Any, out_dim: Dim | None
) -> tuple[Tensor, Dim]:
    lengths = axis.get_size_tensor(device=source.device)
    first = convert_to_tensor(0 if start is None else start, dtype="int32")
    if size is None:
        stop = lengths if end is None else convert_to_tensor(end, dtype="int32")
        size = stop - first
    elif isinstance(size, int):
        size = convert_to_tensor(size, dtype="int32")
    size = size.copy()
    size.sparse_dim = None
    if out_dim is None or not out_dim.is_dim_known():
        out_dim = lengths_dim("slice", size, out_dim)
    positions = range_over_dim(out_dim, device=source.device)
    raw = positions.raw_tensor + first.raw_tensor.to(positions.raw_tensor.device)[..., None]
    raw = raw.clamp(0, max(axis.get_dim_value() - 1, 0))
    indices = Tensor("slice", dims=[*first.dims, out_dim], dtype=dtype_name(raw), sparse_dim=axis, raw_tensor=raw)
    return gather(source, indices=indices, axis=axis), out_dim


def slice_update(target: Tensor, value: Tensor, *, axis: Dim, start: Tensor) -> Tensor:
    """`target` with the frames from `start` on replaced by `value` (whose dim replaces `axis`)."""
    number = target.get_axis_from_description(axis)
    piece_dim = next(d for d in value.dims if d not in target.dims)
    dims = [piece_dim if n == number else d for n, d in enumerate(target.dims)]
    raw = target.raw_tensor.clone()
    first = int(start.raw_tensor) if isinstance(start, Tensor) else int(start)
    raw.narrow(number, first, piece_dim.get_dim_value()).copy_(value.copy_compatible_to_dims_raw(dims))
    return target._new(target.dims, raw)


def scatter(
    source: Tensor,
    *,
    indices: Tensor,
    indices_dim: Dim | Sequence[Dim],
    mode: str = "sum",
    fill_value: float | None = None,
    out_dim: Dim | Sequence[Dim] | None = None,
    use_mask: bool | None = None,
) -> Tensor:
    """The opposite of gather: every value goes to its index in `out_dim`; values with one index are reduced.

    Args:
        mode: sum, max or min; mean, logsumexp, logmeanexp and argmax, as in scatter_mean and so on.
        fill_value: where no value goes; default 0 for sum and mean, else -/+infinity.
        use_mask: padding goes nowhere, and frames of `out_dim` behind the end of a sequence are 0 (default from
            behaviour version 23 on; from 25 on also with a fill value of one's own, or indices outside of
            `out_dim` in the padding).
    """
    if mode in _SCATTER_BY_NAME:
        options: dict[str, Any] = {"indices_dim": indices_dim, "fill_value": fill_value, "out_dim": out_dim}
        return _SCATTER_BY_NAME[mode](source, indices=indices, **options)
    if mode == "argmax":
        assert isinstance(indices_dim, Dim)
        assert out_dim is None or isinstance(out_dim, Dim)
        return scatter_argmax(source, indices=indices, indices_dim=indices_dim, invalid_idx=fill_value, out_dim=out_dim)
    if mode not in ("sum", "max", "min"):
        known = sorted(["sum", "max", "min", "argmax", *_SCATTER_BY_NAME])
        raise ValueError(f"scatter: unknown mode '{mode}', known are {known}")
    index_dims = [indices_dim] if isinstance(indices_dim, Dim) else list(indices_dim)
    out_dim = indices.sparse_dim if out_dim is None else out_dim
    if out_dim is None:
        raise ValueError("scatter: needs out_dim, or indices with a sparse_dim")
    out_dims = [out_dim] if isinstance(out_dim, Dim) else list(out_dim)
    neutral = _scatter_neutral(mode, source.dtype)
    padded = any(dim.need_masking() for dim in (*source.dims, *indices.dims))
    masked = padded and (behavior_at_least(23, "rf_use_mask") if use_mask is None else use_mask)
    fixed = masked and behavior_at_least(25, "rf_scatter_use_fixed_masking")
    if masked:
        # RETURNN's former rule: a fill value of one's own also takes the place of the padding.
        source = source.copy_masked(neutral if fill_value is None or fixed else fill_value, dims=index_dims)
    if fixed:
        indices = indices.copy_masked(0, dims=index_dims)
    first = neutral if fill_value is None or fixed else fill_value
    out = _scatter(source, indices, index_dims, out_dims, mode, first)
    if fixed and fill_value is not None and fill_value != neutral:
        counts = scatter_count(indices=indices, indices_dim=index_dims, out_dim=out_dims)
        out = where(counts > 0, out, fill_value, allow_broadcast_all_sources=True).copy_transpose(out.dims)
    return out.copy_masked(0, dims=out_dims) if masked and mode != "sum" else out


def _scatter_neutral(mode: str, dtype: str) -> float:
    """What changes nothing in a sum, a maximum or a minimum."""
    if mode == "sum":
        return 0
    torch_type = torch_dtype(dtype)
    if torch_type.is_floating_point:
        return float("-inf") if mode == "max" else float("inf")
    limits = torch.iinfo(torch_type)
    return limits.min if mode == "max" else limits.max


def _scatter(
    source: Tensor, indices: Tensor, index_dims: list[Dim], out_dims: list[Dim], mode: str, fill_value: float
) -> Tensor:
    """Every value to its index, padding included; several `out_dims` count as one, the last one running fastest."""
    common = [d for d in indices.dims if d not in index_dims]
    rest = [d for d in source.dims if d not in index_dims and d not in common]
    axis = len(common)
    values = source.copy_compatible_to_dims_raw([*common, *index_dims, *rest], unbroadcast=True)
    values = values.flatten(axis, axis + len(index_dims) - 1)
    index = indices.copy_compatible_to_dims_raw([*common, *index_dims], unbroadcast=True).flatten(axis).long()
    sizes = [d.get_dim_value() for d in out_dims]
    shape = [*values.shape[:axis], math.prod(sizes), *values.shape[axis + 1 :]]
    expanded = index.view(*index.shape, *[1] * (values.ndim - axis - 1)).expand(values.shape)
    filled = values.new_full(shape, fill_value)
    if mode == "sum" and fill_value == 0:
        raw = filled.scatter_add(axis, expanded, values)
    else:
        reduction = {"sum": "sum", "max": "amax", "min": "amin"}[mode]
        raw = filled.scatter_reduce(axis, expanded, values, reduction, include_self=False)
    raw = raw.unflatten(axis, sizes)
    out = source._new([*common, *out_dims, *rest], raw, name="scatter", dtype=dtype_name(raw))
    out.feature_dim = None
    return out


def scatter_mean(source: Tensor, *, indices: Tensor, fill_value: float | None = None, **options: Any) -> Tensor:
    """Mean of the values with one index; 0 (or `fill_value`) where there are none."""
    from returnn_hydra.frontend.elementwise import cast, maximum

    total = scatter(source, indices=indices, **options)
    count = cast(scatter_count(indices=indices, **options), source.dtype)
    mean = total / maximum(count, 1.0)
    return mean if fill_value is None else where(count > 0, mean, fill_value)


def scatter_count(*, indices: Tensor, **options: Any) -> Tensor:
    """How often each index occurs."""
    ones = indices._new(indices.dims, torch.ones_like(indices.raw_tensor))
    ones.sparse_dim = None
    return scatter(ones, indices=indices, **options)


def scatter_logsumexp(source: Tensor, *, indices: Tensor, fill_value: float | None = None, **options: Any) -> Tensor:
    """log(sum(exp)) of the values with one index; -infinity where there are none."""
    from returnn_hydra.frontend.elementwise import exp, is_finite, log

    if behavior_at_least(25, "rf_scatter_use_fixed_masking"):
        indices = indices.copy_masked(0)
    highest = scatter(source, indices=indices, mode="max", use_mask=True, **options)
    safe = where(is_finite(highest), highest, 0.0)
    axis = options.get("out_dim") or indices.sparse_dim
    shifted = exp(source - gather(safe, indices=indices, axis=axis))
    total = log(scatter(shifted, indices=indices, use_mask=True, **options)) + safe
    return total if fill_value is None else where(is_finite(total), total, fill_value)


def scatter_logmeanexp(source: Tensor, *, indices: Tensor, fill_value: float | None = None, **options: Any) -> Tensor:
    """log(mean(exp)) of the values with one index."""
    from returnn_hydra.frontend.elementwise import cast, log, maximum

    total = scatter_logsumexp(source, indices=indices, fill_value=fill_value, **options)
    count = cast(scatter_count(indices=indices, **options), source.dtype)
    return total - log(maximum(count, 1.0))


def scatter_argmax(
    source: Tensor, *, indices: Tensor, indices_dim: Dim, invalid_idx: float | None = -1, out_dim: Dim | None = None
) -> Tensor:
    """For every index the position (in `indices_dim`) of the largest value that goes there; `invalid_idx` (-1) if none
    does."""
    out_dim = out_dim or indices.sparse_dim
    assert out_dim is not None
    if behavior_at_least(25, "rf_scatter_use_fixed_masking"):
        indices = indices.copy_masked(0)
    best = scatter(source, indices=indices, indices_dim=indices_dim, mode="max", out_dim=out_dim, use_mask=True)
    is_best = compare(source, "==", gather(best, indices=indices, axis=out_dim))
    if indices_dim.need_masking():
        is_best = logical_and(is_best, indices_dim.get_mask(device=source.device))
    size = indices_dim.get_dim_value()
    positions = range_over_dim(indices_dim, device=source.device)
    positions.sparse_dim = None
    candidates = where(is_best, positions, size)
    first = scatter(
        candidates,
        indices=indices,
        indices_dim=indices_dim,
        mode="min",
        out_dim=out_dim,
        fill_value=size,
        use_mask=False,
    )
    result = where(first < size, first, -1 if invalid_idx is None else invalid_idx)
    result.sparse_dim = indices_dim
    return result


_SCATTER_BY_NAME = {
    "mean": scatter_mean,
    "logsumexp": scatter_logsumexp,
    "logmeanexp": scatter_logmeanexp,
}


def _without_padding(mask: Tensor, dims: list[Dim]) -> Tensor:
    for dim in dims:
        if dim.need_masking():
            mask = logical_and(mask, dim.get_mask(device=mask.device))
    return mask


def masked_select(
    tensor: Tensor, *, mask: Tensor, dims: Sequence[Dim], out_dim: Dim | None = None
) -> tuple[Tensor, Dim]:
    """The values where `mask` holds, moved together along one new dim that replaces `dims`."""
    from returnn_hydra.frontend.reduce import reduce_sum

    dims = list(dims)
    batch = [d for d in mask.dims if d not in dims]
    if batch:  # RETURNN takes the mask as it is when no batch dim is left (measured)
        mask = _without_padding(mask, dims)
    count = mask._new(mask.dims, mask.raw_tensor.to(torch.int32), dtype="int32")
    missing = [d for d in dims if d not in mask.dims]
    if missing:
        count = count._new([*batch, *dims], count.copy_compatible_to_dims_raw([*batch, *dims], unbroadcast=True))
    total = reduce_sum(count, axis=dims, use_mask=False)
    out_dim = lengths_dim("masked_select", total, out_dim)
    rest = [d for d in tensor.dims if d not in dims and d not in batch]
    values = tensor.copy_compatible_to_dims_raw([*batch, *dims, *rest], unbroadcast=True)
    values = values.flatten(len(batch), len(batch) + len(dims) - 1)
    chosen = mask.copy_compatible_to_dims_raw([*batch, *dims], unbroadcast=True).flatten(len(batch))
    size = out_dim.get_dim_value()
    if not batch:
        raw = values[chosen]
    else:
        # Stable sort by "not chosen": the chosen frames come first, in order.
        index = torch.sort((~chosen).to(torch.uint8), dim=-1, stable=True).indices[..., :size]
        raw = _batched_gather(values, index, len(batch), 1)
        keep = torch.arange(size, device=raw.device) < chosen.sum(-1, keepdim=True)
        raw = torch.where(keep.view(*keep.shape, *[1] * len(rest)), raw, torch.zeros_like(raw))
    out = tensor._new([*batch, out_dim, *rest], raw, name="masked_select")
    if batch:
        out.feature_dim = None
    return out, out_dim


def masked_scatter(
    source: Tensor, backup: Tensor | None = None, *, mask: Tensor, dims: Sequence[Dim], in_dim: Dim
) -> Tensor:
    """The opposite of masked_select: values back to where `mask` holds, `backup` (default 0) elsewhere."""
    dims = list(dims)
    batch = [d for d in mask.dims if d not in dims]
    if batch:  # RETURNN takes the mask as it is when no batch dim is left (measured)
        mask = _without_padding(mask, dims)
    rest = [d for d in source.dims if d != in_dim and d not in batch]
    chosen = mask.copy_compatible_to_dims_raw([*batch, *dims], unbroadcast=True)
    flat = chosen.flatten(len(batch))
    index = (flat.long().cumsum(-1) - 1).clamp(min=0)
    values = source.copy_compatible_to_dims_raw([*batch, in_dim, *rest], unbroadcast=True)
    if values.shape[len(batch)] == 0:
        values = values.new_zeros([*values.shape[: len(batch)], 1, *values.shape[len(batch) + 1 :]])
    raw = _batched_gather(values, index, len(batch), 1)
    raw = raw.unflatten(len(batch), chosen.shape[len(batch) :])
    result = source._new([*batch, *dims, *rest], raw, name="masked_scatter")
    return where(mask, result, 0 if backup is None else backup, allow_broadcast_all_sources=True)


def pack_padded(
    source: Tensor, *, dims: Sequence[Dim], enforce_sorted: bool = False, out_dim: Dim | None = None
) -> tuple[Tensor, Dim]:
    """All real frames of all sequences along one dim, sequence after sequence."""
    dims = list(dims)
    masks = [d.get_mask(device=source.device) for d in dims if d.need_masking()]
    if not masks:
        out, dim = merge_dims(source, dims=dims)
        if out_dim is not None and not out_dim.is_dim_known():
            out_dim.declare_same_as(dim)
        return out, dim
    mask = masks[0]
    for other in masks[1:]:
        mask = logical_and(mask, other)
    if enforce_sorted:
        dims = sorted(dims, key=lambda d: d.need_masking(), reverse=True)
    if out_dim is not None and out_dim.is_dim_known():
        out, _ = masked_select(source, mask=mask, dims=dims, out_dim=Dim(out_dim.get_dim_value(), name="packed"))
        packed = out.copy_template_replace_dim_tag(next(d for d in out.dims if d.name == "packed"), out_dim)
        packed.raw_tensor = out.raw_tensor
        return packed, out_dim
    return masked_select(source, mask=mask, dims=dims, out_dim=out_dim)


def pad_packed(source: Tensor, *, in_dim: Dim, dims: Sequence[Dim]) -> Tensor:
    """The opposite of pack_padded; padding is 0."""
    dims = list(dims)
    masks = [d.get_mask(device=source.device) for d in dims if d.need_masking()]
    if not masks:
        from returnn_hydra.frontend.arrays import split_dims

        return split_dims(source, axis=in_dim, dims=dims)
    mask = masks[0]
    for other in masks[1:]:
        mask = logical_and(mask, other)
    return masked_scatter(source, mask=mask, dims=dims, in_dim=in_dim)


def sparse_to_dense(labels: Any, *, label_value: Any, other_value: Any, axis: Dim | None = None) -> Tensor:
    """A vector per class index: `label_value` at the class, `other_value` elsewhere."""
    from returnn_hydra.frontend.ambient import get_default_float_dtype

    labels = convert_to_tensor(labels)
    axis = axis or labels.sparse_dim
    if axis is None:
        raise ValueError(f"sparse_to_dense: {labels} has no sparse_dim; pass axis")
    classes = range_over_dim(axis, device=labels.device)
    raw = labels.raw_tensor[..., None] == classes.raw_tensor
    hit = Tensor("one_hot", dims=[*labels.dims, axis], dtype="bool", raw_tensor=raw)
    values = [
        full(dims=(), fill_value=v, dtype=get_default_float_dtype(), device=labels.device)
        if isinstance(v, (int, float))
        else v
        for v in (label_value, other_value)
    ]
    out = where(hit, *values, allow_broadcast_all_sources=True)
    out.sparse_dim = out.feature_dim = None
    return out


def one_hot(source: Tensor) -> Tensor:
    """1 at the class, 0 elsewhere."""
    return sparse_to_dense(source, label_value=1.0, other_value=0.0)


def smooth_one_hot(source: Tensor, *, label_prob: float | Tensor) -> Tensor:
    """`label_prob` at the class, the rest of the probability evenly over the other classes."""
    if source.sparse_dim is None or source.sparse_dim.dimension is None:
        raise ValueError(f"smooth_one_hot: {source} needs a sparse_dim with a static size")
    rest = (1.0 - label_prob) / (source.sparse_dim.dimension - 1)
    return sparse_to_dense(source, label_value=label_prob, other_value=rest)


def top_k_mask(values: Tensor, *, axis: Dim, k: int | Tensor) -> Tensor:
    """True for the k largest values."""
    from returnn_hydra.frontend.reduce import top_k

    _, indices, _ = top_k(values, axis=axis, k=k)
    assert isinstance(indices, Tensor)
    number = values.get_axis_from_description(axis)
    mask = torch.zeros_like(values.raw_tensor, dtype=torch.bool)
    order = [d for d in values.dims if d != axis]
    index = indices.raw_tensor.movedim(-1, number) if len(order) else indices.raw_tensor
    return values._new(values.dims, mask.scatter(number, index, True), dtype="bool")


def top_p_mask(
    probs: Tensor, *, axis: Dim, p: float | Tensor, one_more: bool = True, min_tokens_to_keep: int = 1
) -> Tensor:
    """True for the most probable values that together reach the probability p."""
    number = probs.get_axis_from_description(axis)
    ordered, order = torch.sort(probs.raw_tensor, dim=number, descending=True)
    total = ordered.cumsum(number)
    limit = p.raw_tensor if isinstance(p, Tensor) else p
    keep = (total - ordered if one_more else total) < limit
    first = torch.arange(keep.shape[number], device=keep.device) < min_tokens_to_keep
    keep = keep | first.view([-1 if n == number else 1 for n in range(keep.ndim)])
    mask = torch.zeros_like(keep).scatter(number, order, keep)
    return probs._new(probs.dims, mask, dtype="bool")
