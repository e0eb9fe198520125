"""Layers that cut, pad and shift along an axis.

Legend: B batch, T time, W window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from returnn_hydra.network.axis import Axis, static_axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.errors import TooShort, nearest
from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.network.registry import register_layer


def with_axis(x: NamedTensor, raw: Tensor, old: Axis, new: Axis) -> NamedTensor:
    """Other values, with one axis replaced; its marks go over."""
    return x.like(
        raw,
        [new if a is old else a for a in x.axes],
        feature=new if x.feature is old else x.feature,
        time=new if x.time is old else x.time,
    )


@register_layer("slice")
def slice_layer(
    call: LayerCall,
    *,
    axis: Any,
    slice_start: int | None = None,
    slice_end: int | None = None,
    slice_step: int | None = None,
    out_dim: Any = None,
) -> NamedTensor:
    """x[start:end:step] along an axis; a dynamic axis is cut at every sequence's own end for a negative `slice_end`."""
    del out_dim
    x = call.x
    old = call.axis(x, axis)
    step = slice_step or 1
    if step < 0:
        raise call.error(
            f"slice_step = {slice_step}: negative steps are not supported; nearest: class 'eval', tf.reverse"
        )
    index = torch.arange(old.size)[slice_start:slice_end:step]
    raw = x.raw.index_select(x.index(old), index.to(x.raw.device))
    new = _sliced_axis(call, x, old, len(index), slice_start or 0, slice_end, step)
    return with_axis(x, raw, old, new)


def _sliced_axis(call: LayerCall, x: NamedTensor, old: Axis, size: int, start: int, end: int | None, step: int) -> Axis:
    name = f"{call.name}:slice"
    if old is x.feature:
        return call.new_feature(size, "slice")
    key = ("slice", start, end, step)
    if not old.is_dynamic or (end is not None and end >= 0):
        return old.derived(key, lambda: static_axis(name, size))

    def change(lengths: Tensor) -> Tensor:
        left = lengths + (end or 0) - start
        return torch.div(left.clamp(min=0) + step - 1, step, rounding_mode="floor")

    return old.with_lengths(key, name, size, change)


@register_layer("slice_nd", refs=("start", "size"))
def slice_nd(
    call: LayerCall,
    *,
    start: Any = None,
    size: Any = None,
    min_size: int | None = None,
    axis: Any = "T",
    out_spatial_dim: Any = None,
) -> NamedTensor:
    """`size` frames from a start that a layer gives for every sequence; outside of the sequence: 0.

    Without `size`: to the end of every sequence.
    """
    del out_spatial_dim
    x = call.x
    old = call.axis(x, axis)
    begin = (
        call.layer(start) if isinstance(start, str) else NamedTensor(torch.tensor(start or 0, device=call.device), ())
    )
    others = [a for a in x.axes if a is not old]
    if begin.feature is not None and begin.feature.size == 1:
        begin = begin.select(begin.feature, 0)
    extra = [a for a in begin.axes if a not in others and a is not old]
    lead = [*[a for a in others if a in begin.axes], *extra]
    rest = [a for a in others if a not in lead]
    new = _slice_axis(call, old, begin, size, min_size, lead)
    offsets = torch.arange(new.size, device=x.raw.device)
    places = begin.expanded(lead).long()[..., None] + offsets  # (*lead, new)
    inside = (places >= 0) & (places < old.size)
    if old.is_dynamic and all(a in lead for a in old.over):
        lengths = NamedTensor(old.lengths.to(places.device), old.over).expanded(lead)  # type: ignore[union-attr]
        inside = inside & (places < lengths[..., None])
    values = x.expanded([*lead, old, *rest]) if not extra else _expanded_to(x, lead, old, rest)
    index = places.clamp(0, max(old.size - 1, 0))
    index = index.reshape(*index.shape, *[1] * len(rest)).expand(*index.shape, *[a.size for a in rest])
    raw = values.gather(len(lead), index)
    keep = inside.reshape(*inside.shape, *[1] * len(rest))
    raw = torch.where(keep, raw, torch.zeros((), dtype=raw.dtype, device=raw.device))
    return x.like(raw, [*lead, new, *rest], time=None if old is x.time_axis and not new.is_dynamic else new)


def _expanded_to(x: NamedTensor, lead: list[Axis], old: Axis, rest: list[Axis]) -> Tensor:
    return x.to_axes([*lead, old, *rest]).expand([a.size for a in (*lead, old, *rest)])


def _slice_axis(
    call: LayerCall, old: Axis, begin: NamedTensor, size: Any, min_size: int | None, lead: list[Axis]
) -> Axis:
    name = f"sliced-time:{call.name}"
    if isinstance(size, int):
        return old.derived((call.path, size), lambda: static_axis(name, max(size, min_size or 0)))
    if isinstance(size, str):
        given = call.layer(size)
        lengths = given.expanded(lead).cpu().long().clamp(min=min_size or 0)
    elif old.lengths is None:
        lengths = (old.size - begin.expanded(lead).cpu().long()).clamp(min=min_size or 0)
    else:
        if not lead:
            lead = list(old.over)
        own = NamedTensor(old.lengths, old.over).expanded(lead)
        start = begin.raw.cpu() if begin.raw.dim() == 0 else begin.expanded(lead).cpu()
        lengths = (own - start.long()).clamp(min=min_size or 0)
    longest = int(lengths.max()) if lengths.numel() else 0
    if lengths.dim() == 0:
        return static_axis(name, longest)
    return Axis(name, longest, lengths=lengths, over=lead)


@register_layer("pad")
def pad(
    call: LayerCall,
    *,
    axes: Any,
    padding: Any,
    value: float = 0,
    mode: str = "constant",
    handle_dynamic_dims: bool | None = None,
    out_dims: Any = None,
) -> NamedTensor:
    """Add entries on both sides of axes.

    The right side of a dynamic axis comes behind the padding (RETURNN before `behavior_version` 21), or behind the end
    of every sequence with `handle_dynamic_dims`.
    """
    del out_dims
    x = call.x
    found = call.axes(x, axes)
    pairs = _pad_pairs(call, padding, len(found))
    if handle_dynamic_dims is None:
        handle_dynamic_dims = call.run.user.get("behavior_version", 0) >= 21
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}
    if mode not in modes:
        raise call.error(f"mode {mode!r} is not supported{nearest(mode, modes)}")
    for old, (left, right) in zip(found, pairs, strict=True):
        x = _padded(call, x, old, left, right, value, mode, handle_dynamic_dims)
    return x


def _pad_pairs(call: LayerCall, padding: Any, count: int) -> list[tuple[int, int]]:
    if isinstance(padding, int):
        return [(padding, padding)] * count
    if len(padding) == 2 and all(isinstance(p, int) for p in padding):
        return [(padding[0], padding[1])] * count
    if len(padding) != count:
        raise call.error(f"padding = {padding!r} for {count} axes")
    return [(p, p) if isinstance(p, int) else (p[0], p[1]) for p in padding]


def _padded(
    call: LayerCall, x: NamedTensor, old: Axis, left: int, right: int, value: float, mode: str, at_ends: bool
) -> NamedTensor:
    moved = x.moved_last(old)
    raw = pad_last(moved.raw, left, right, mode, value)
    if old is x.feature:
        new = call.new_feature(raw.shape[-1], "pad")
    else:
        key = ("pad", left, right)
        new = old.with_lengths(key, f"{call.name}:pad", raw.shape[-1], lambda n: (n + left + right).clamp(min=0))
    result = with_axis(moved, raw, old, new)
    if old.is_dynamic and at_ends and right > 0:
        if mode != "constant":
            raise call.error(f"mode {mode!r} at the ends of sequences is not supported; nearest: 'constant'")
        assert old.lengths is not None
        shifted = Axis("end", new.size, lengths=old.lengths + left, over=old.over)
        inside = NamedTensor(shifted.mask(raw.device), (*old.over, new)).to_axes(result.axes)
        result = result.like(torch.where(inside, result.raw, torch.full((), value, dtype=raw.dtype, device=raw.device)))
    return result.ordered([new if a is old else a for a in x.axes])


def pad_last(raw: Tensor, left: int, right: int, mode: str = "constant", value: float = 0.0) -> Tensor:
    """Pad the last dimension, of any type and number of dimensions."""
    if mode == "constant":
        return F.pad(raw, (left, right), value=value)
    size = raw.shape[-1]
    index = torch.arange(-left, size + right, device=raw.device)
    if mode == "reflect":
        index = index.abs()
        index = torch.where(index >= size, 2 * (size - 1) - index, index)
    elif mode == "replicate":
        index = index.clamp(0, size - 1)
    else:
        index = index % size
    return raw.index_select(-1, index)


@register_layer("shift_axis")
def shift_axis(
    call: LayerCall,
    *,
    axis: Any,
    amount: int,
    pad: bool = True,
    pad_value: float = 0,
    adjust_size_info: bool = True,
) -> NamedTensor:
    """Move the entries of an axis by `amount`, to the right if positive."""
    x = call.x
    old = call.axis(x, axis)
    if not amount:
        raise call.error("amount = 0 does nothing")
    shift = min(abs(amount), old.size)
    moved = x.moved_last(old)
    raw = moved.raw[..., shift:] if amount < 0 else moved.raw[..., : old.size - shift]
    if pad:
        raw = F.pad(raw, (0, shift) if amount < 0 else (shift, 0), value=pad_value)
    change = amount if amount < 0 or pad else 0
    size = raw.shape[-1]
    if not adjust_size_info and pad:
        new = old
    elif old is x.feature:
        new = call.new_feature(size, "shift_axis")
    elif adjust_size_info:
        key = ("shift", amount, pad)
        new = old.with_lengths(key, f"{call.name}_shift_axis", size, lambda n: (n + change).clamp(0, size))
    else:
        new = old.with_lengths(("cut", amount), f"{call.name}_shift_axis", size, lambda n: n.clamp(max=size))
    return with_axis(moved, raw, old, new).ordered([new if a is old else a for a in x.axes])


@register_layer("window")
def window(
    call: LayerCall,
    *,
    window_size: int | None = None,
    window_dim: Any = None,
    window_left: int | None = None,
    window_right: int | None = None,
    axis: Any = "T",
    out_spatial_dim: Any = None,
    padding: str = "same",
    stride: int = 1,
) -> NamedTensor:
    """All windows over an axis, as a new axis behind it: (B, T, F) -> (B, T, W, F); zeros outside."""
    del out_spatial_dim
    size = window_size or getattr(window_dim, "dimension", None)
    if not size:
        raise call.error("option 'window_size' is missing")
    x = call.x.batch_major()
    if call.stepping and call.finder.time(x) is None:
        return _window_step(call, x, size)
    old = call.axis(x, axis)
    left, right = _window_sides(call, size, window_left, window_right, padding)
    moved = x.like(x.masked([old], 0)).moved_last(old)
    padded = F.pad(moved.raw, (left, right)) if padding == "same" else moved.raw
    if padded.shape[-1] < size:
        raise TooShort(f"{call.path}: a window of {size} frames over {old}")
    raw = padded.unfold(-1, size, stride)  # (..., T', W)
    if padding == "same":

        def change(n: Tensor) -> Tensor:
            return torch.div(n + stride - 1, stride, rounding_mode="floor")
    else:

        def change(n: Tensor) -> Tensor:
            return torch.div((n - size + stride).clamp(min=0), stride, rounding_mode="floor")

    same = padding == "same" and stride == 1
    key = ("ceildiv", stride) if padding == "same" else ("window", size, stride)
    new = old if same else old.with_lengths(key, f"{call.name}:spatial", raw.shape[-2], change)
    width = call.run.batch.derived((call.path, "window"), lambda: static_axis(f"{call.name}:window", size))
    axes = [*moved.axes[:-1], new, width]
    order: list[Axis] = []
    for a in x.axes:
        order += [new, width] if a is old else [a]
    result = x.like(raw, axes, feature=new if x.feature is old else x.feature, time=new if x.time is old else x.time)
    return result.ordered(order)


def _window_sides(call: LayerCall, size: int, left: int | None, right: int | None, padding: str) -> tuple[int, int]:
    if padding not in ("same", "valid"):
        raise call.error(f"padding {padding!r} is not supported{nearest(padding, ('same', 'valid'))}")
    if right is None:
        right = size // 2 if left is None else size - left - 1
    if left is None:
        left = size - right - 1
    if left + right + 1 != size:
        raise call.error(f"window_left = {left} and window_right = {right} do not fit window_size = {size}")
    return left, right


def _window_step(call: LayerCall, x: NamedTensor, size: int) -> NamedTensor:
    """In a loop: this frame and the `size - 1` before it."""
    before = call.state()
    width = call.run.batch.derived((call.path, "window"), lambda: static_axis(f"{call.name}:window", size))
    lead = [a for a in x.axes if a.is_batch_like]
    rest = [a for a in x.axes if a not in lead]
    frame = x.expanded([*lead, *rest]).unsqueeze(len(lead))
    if before is None:
        past = frame.new_zeros(*frame.shape[: len(lead)], size - 1, *frame.shape[len(lead) + 1 :])
    else:
        state = before["window"]
        target = [*lead, width, *rest]
        past = state.expanded(target).narrow(len(lead), 1, size - 1)
    y = x.like(torch.cat([past, frame], len(lead)), [*lead, width, *rest])
    call.set_state({"window": y})
    return y
