"""Layers that pick entries by index."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.axis import Axis, static_axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.named_tensor import NamedTensor, broadcast, unify
from returnn_hydra.network.registry import register_layer


def pick(
    call: LayerCall, x: NamedTensor, position: NamedTensor, axis: Axis, clip: bool, same: bool = True
) -> NamedTensor:
    """x at `position` of an axis: common axes first, then those of x before it, of the position, and of x behind it."""
    hidden = call.scope.all_hidden | {axis}
    x, position = unify([x, position], hidden) if same else [x, position]
    common = [a for a in x.axes if a in position.axes and a is not axis]
    place = x.index(axis)
    before = [a for a in x.axes[:place] if a not in common]
    after = [a for a in x.axes[place + 1 :] if a not in common]
    own = [a for a in position.axes if a not in common]
    index = position.expanded([*common, *own]).long()
    if clip or call.run.building:  # made-up positions may lie outside
        index = _clipped(index, axis, common, own)
    values = x.expanded([*common, axis, *before, *after])
    flat = index.reshape(*[a.size for a in common], -1)
    rest = [*before, *after]
    spread = flat.reshape(*flat.shape, *[1] * len(rest)).expand(*flat.shape, *[a.size for a in rest])
    raw = values.gather(len(common), spread) if axis.size else values.new_zeros(spread.shape)
    raw = raw.reshape(*[a.size for a in (*common, *own, *rest)])
    result = x.like(raw, [*common, *own, *rest], feature=None if x.feature is axis else x.feature)
    time = position.time if position.time in result.axes else result.time
    return result.like(result.raw, time=time).ordered([*common, *before, *own, *after])


def _clipped(index: Tensor, axis: Axis, common: list[Axis], own: list[Axis]) -> Tensor:
    last: Any = axis.size - 1
    if axis.lengths is not None and all(a in common for a in axis.over):
        lengths = NamedTensor(axis.lengths.to(index.device), axis.over).to_axes([*common, *own])
        return torch.minimum(index.clamp(min=0), lengths - 1)
    return index.clamp(0, last)


@register_layer("gather", refs=("position",))
def gather(call: LayerCall, *, position: Any, axis: Any, clip_to_valid: bool = False) -> NamedTensor:
    """Entries of an axis at the positions that another layer gives."""
    x = call.x
    over = call.axis(x, axis)
    if isinstance(position, int):
        picked = x.select(over, position)
    else:
        picked = pick(call, x, call.layer(position), over, clip_to_valid)
    return picked if over is not x.feature else picked.like(picked.raw, feature=call.feature_left(x, picked.axes))


@register_layer("gather_nd", refs=("position",))
def gather_nd(call: LayerCall, *, position: str) -> NamedTensor:
    """Frames at the positions that another layer gives."""
    x = call.x
    return pick(call, x, call.layer(position), call.time(x), False)


@register_layer("scatter_nd", refs=("position",))
def scatter_nd(
    call: LayerCall,
    *,
    position: str,
    position_axis: Any,
    output_dim_via_time_from: str | None = None,
    out_spatial_dim: Any = None,
    filter_invalid_indices: bool = False,
) -> NamedTensor:
    """Add the entries of `position_axis` at the positions that a layer gives, in an axis taken from another layer."""
    del out_spatial_dim
    x = call.x
    places = call.layer(position)
    over = call.axis(places, position_axis)
    if output_dim_via_time_from is None:
        raise call.error("option 'output_dim_via_time_from' is missing")
    target = call.time(call.layer(output_dim_via_time_from))
    raws, template = broadcast([x, places], call.scope.all_hidden)
    matched = over if over in template.axes else next(a for a in template.axes if a.same_sizes(over))
    rest = [a for a in template.axes if a is not matched]
    sizes = [a.size for a in (*rest, matched)]
    source = template.dense(raws[0].expand([a.size for a in template.axes])).to_axes([*rest, matched])
    index = template.dense(raws[1].expand([a.size for a in template.axes])).to_axes([*rest, matched]).long()
    keep = torch.ones(sizes, dtype=torch.bool, device=source.device)
    if matched.is_dynamic:
        keep = template.mask(matched).to_axes([*rest, matched]).expand(sizes)
    inside = (index >= 0) & (index < target.size)
    if filter_invalid_indices or call.run.building:
        keep = keep & inside
    elif bool((keep & ~inside).any()):
        raise call.error(f"positions outside of {target}; set filter_invalid_indices")
    source = torch.where(keep, source, torch.zeros((), dtype=source.dtype, device=source.device))
    out = source.new_zeros(*sizes[:-1], target.size)
    raw = out.scatter_add(-1, torch.where(keep, index, 0).expand(sizes), source.expand(sizes))
    lead = [a for a in rest if a is not template.feature]
    result = template.like(raw, [*rest, target], sparse_dim=x.sparse_dim, time=target)
    batch = [a for a in lead if a.is_batch_like]
    order = [*batch, target, *[a for a in rest if a not in batch]]
    return result.ordered(order)


@register_layer("search_sorted", concat=False, refs=("sorted_sequence", "values"))
def search_sorted(
    call: LayerCall, *, sorted_sequence: str, values: str, axis: Any = "T", side: str = "left"
) -> NamedTensor:
    """Where the values would have to be put into a sorted axis."""
    if side not in ("left", "right"):
        raise call.error(f"side = {side!r}, expected 'left' or 'right'")
    keys, wanted = call.layer(sorted_sequence), call.layer(values)
    over = call.axis(keys, axis)
    high = torch.iinfo(keys.raw.dtype).max if not keys.raw.is_floating_point() else torch.inf
    keys = keys.like(keys.masked([over], high))
    lead = [a for a in keys.axes if a is not over and a in wanted.axes]
    if len(lead) != len(keys.axes) - 1:
        raise call.error(f"the values lack axes of {list(keys.axes)}")
    rest = [a for a in wanted.axes if a not in lead]
    flat = wanted.expanded([*lead, *rest]).reshape(*[a.size for a in lead], -1).contiguous()
    found = torch.searchsorted(keys.expanded([*lead, over]).contiguous(), flat, right=side == "right")
    return wanted.like(found.to(torch.int32).reshape([a.size for a in (*lead, *rest)]), [*lead, *rest])


@register_layer("boolean_mask", refs=("mask",))
def boolean_mask(call: LayerCall, *, mask: str, dims: Any = None, out_dim: Any = None) -> NamedTensor:
    """All entries where the mask is true, one behind the other."""
    del out_dim
    x, keep = call.x, call.layer(mask)
    over = list(keep.axes) if dims is None else call.axes(keep, dims)
    rest = [a for a in x.axes if a not in over]
    raw = x.expanded([*over, *rest])[keep.expanded(over).bool()]
    return x.like(raw, [static_axis(f"{call.name}:mask", raw.shape[0]), *rest])
