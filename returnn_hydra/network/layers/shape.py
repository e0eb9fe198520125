"""Layers that change axes, not values."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.axis import BATCH, Axis, feature_axis, static_axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.named_tensor import NamedTensor, broadcast, common_axes, unify
from returnn_hydra.network.registry import register_layer


@register_layer("merge_dims", framewise=True)
def merge_dims(call: LayerCall, *, axes: Any, keep_order: bool = False, out_dim: Any = None) -> NamedTensor:
    """Several axes become one: the feature axis if it is among them, at its place.

    With a list and `keep_order`, in the order of the list; else in the order of the tensor.
    """
    del out_dim
    x = call.x.batch_major()
    found = call.axes(x, axes)
    if not keep_order:
        found = [axis for axis in x.axes if axis in found]
    if len(found) <= 1:
        return x
    size = math.prod(axis.size for axis in found)
    with_feature = x.feature in found
    target = _merged_axis(call, found, size, with_feature)
    rest = [axis for axis in x.axes if axis not in found]
    place = sum(axis not in found for axis in x.axes[: x.index(x.feature)]) if with_feature and x.feature else None
    if place is None:
        place = min(x.index(axis) for axis in found)
        place = sum(axis not in found for axis in x.axes[:place])
    order = [*rest[:place], *found, *rest[place:]]
    raw = x.expanded(order).flatten(place, place + len(found) - 1)
    new_axes = [*rest[:place], target, *rest[place:]]
    time = target if call.finder.time(x) in found and not with_feature else x.time
    return x.like(raw, new_axes, feature=target if with_feature else x.feature, time=time)


def _merged_axis(call: LayerCall, found: list[Axis], size: int, with_feature: bool) -> Axis:
    if with_feature and not any(axis.is_dynamic for axis in found):
        return call.new_feature(size, "merged")
    if any(axis.kind == BATCH for axis in found):
        return found[0].derived(("merge", *found), lambda: Axis(f"{call.name}:merged", size, BATCH))
    dynamic = [axis for axis in found if axis.is_dynamic]
    if len(dynamic) == 1 and found[0] is dynamic[0] and not with_feature:
        factor = math.prod(axis.size for axis in found[1:])
        return dynamic[0].with_lengths(("times", factor), f"{call.name}:merged", size, lambda n: n * factor)
    if dynamic:
        raise call.error(f"cannot merge {found}: real frames would not stay together; merge a dynamic axis first")
    return found[0].derived(("merge", *found), lambda: static_axis(f"{call.name}:merged", size))


@register_layer("split_dims")
def split_dims(
    call: LayerCall, *, axis: Any, dims: Sequence[int], pad_to_multiples: bool | None = None, pad_value: float = 0
) -> NamedTensor:
    """One axis becomes several; one size may be -1. A dynamic axis is padded to a multiple."""
    del pad_to_multiples
    x = call.x
    old = call.axis(x, axis)
    sizes = [getattr(size, "dimension", size) for size in dims]
    if sum(size == -1 for size in sizes) > 1 or not all(isinstance(size, int) for size in sizes):
        raise call.error(f"dims = {dims!r}: numbers are expected, at most one of them -1")
    known = math.prod(size for size in sizes if size != -1)
    raw = x.raw
    total = old.size
    if -1 in sizes and total % known:
        if not old.is_dynamic:
            raise call.error(f"axis {old} of size {total} does not divide into {tuple(dims)}")
        raw = x.masked([old], pad_value)
        extra = -total % known
        shape = [extra if a is old else a.size for a in x.axes]
        raw = torch.cat([raw, torch.full(shape, pad_value, dtype=raw.dtype, device=raw.device)], x.index(old))
        total += extra
    sizes = [total // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != total:
        raise call.error(f"axis {old} of size {total} does not divide into {tuple(dims)}")
    return _split(call, x, old, raw, sizes, [size == -1 for size in dims], known)


def _split(
    call: LayerCall, x: NamedTensor, old: Axis, raw: Tensor, sizes: list[int], rests: list[bool], known: int
) -> NamedTensor:
    is_feature = old is x.feature
    new: list[Axis] = []
    for i, size in enumerate(sizes):
        name = f"{call.name}_split_dims{i}"
        if old.is_dynamic and rests[i]:
            new.append(old.with_lengths(("ceildiv", known), name, size, lambda n: -(-n // known)))
        elif is_feature and i == len(sizes) - 1:
            new.append(call.new_feature(size, name))
        else:
            new.append(old.derived((call.path, name, size), functools.partial(static_axis, name, size)))
    place = x.index(old)
    axes = [*x.axes[:place], *new, *x.axes[place + 1 :]]
    time = next((axis for axis in new if axis.is_dynamic), x.time) if old.is_dynamic else x.time
    return x.like(raw.unflatten(place, sizes), axes, feature=new[-1] if is_feature else x.feature, time=time)


@register_layer("expand_dims", framewise=True)
def expand_dims(call: LayerCall, *, axis: Any, dim: Any = 1) -> NamedTensor:
    """A new axis: behind the features (`F`), before them (`spatial`, `T`), or at a place (batch is 0)."""
    x = call.x
    size = getattr(dim, "dimension", dim)
    if not isinstance(size, int):
        raise call.error(f"dim = {dim!r}, expected a number")
    place, as_feature = _new_place(call, x, axis)
    if isinstance(axis, int):
        x = x.batch_major()
    new = call.new_feature(size, "expand_dims") if as_feature else _static(call, size, "expand_dims")
    shape = list(x.raw.shape)
    raw = x.raw.unsqueeze(place).expand(*shape[:place], size, *shape[place:])
    axes = [*x.axes[:place], new, *x.axes[place:]]
    time = x.time
    if not as_feature and not isinstance(axis, int) and call.finder.time(x) is None:
        time = new
    return x.like(raw, axes, feature=new if as_feature else x.feature, time=time)


def _static(call: LayerCall, size: int, name: str) -> Axis:
    return call.run.batch.derived((call.path, name, size), lambda: static_axis(f"{call.name}_{name}", size))


def _new_place(call: LayerCall, x: NamedTensor, axis: Any) -> tuple[int, bool]:
    """Index of the new axis, and whether it is the new feature axis."""
    if isinstance(axis, int) and not isinstance(axis, bool):
        return (axis if axis >= 0 else len(x.axes) + 1 + axis), False
    name = str(axis).lower()
    if name in ("f", "feature"):
        place = len(x.axes) if x.feature is None else x.index(x.feature) + 1
        return place, True
    if name in ("spatial", "time", "t"):
        return (len(x.axes) if x.feature is None else len(x.axes) - 1), False
    raise call.error(f"axis = {axis!r}, expected 'F', 'spatial', 'T' or a number")


@register_layer("squeeze", framewise=True)
def squeeze(
    call: LayerCall, *, axis: Any, enforce_batch_dim_axis: Any = None, allow_no_op: bool = False
) -> NamedTensor:
    """Drop axes of size 1; "auto": all of them."""
    del enforce_batch_dim_axis
    x = call.x
    if axis == "auto":
        found = [a for a in call.finder.spatial_or_feature(x) if a.size == 1 and not a.is_dynamic]
    else:
        found = call.axes(x, axis)
        if not found and allow_no_op:
            return x
    if call.run.building:  # made-up streams have more frames than one label per sequence
        for a in [a for a in found if a.is_dynamic]:
            x = x.select(a, 0)
            found.remove(a)
        if not found:
            return x
    if not found or any(a.size != 1 for a in found):
        raise call.error(f"axis {axis!r} of {list(x.axes)} has not size 1")
    rest = [a for a in x.axes if a not in found]
    return x.like(x.raw.reshape([a.size for a in rest]), rest, feature=call.feature_left(x, rest))


@register_layer("stack", concat=False, framewise=True)
def stack(call: LayerCall, *, axis: Any = None, out_spatial_dim: Any = None) -> NamedTensor:
    """The sources along a new axis, behind the time axis, or behind the batch axis without one."""
    del out_spatial_dim
    raws, template = broadcast(call.sources, call.scope.all_hidden)
    sizes = [a.size for a in template.axes]
    if isinstance(axis, int):
        place = axis if axis >= 0 else len(sizes) + 1 + axis
    else:
        time = call.finder.time(template)
        batch = template.batch_axis
        anchor = time if time is not None else batch
        place = template.index(anchor) + 1 if anchor is not None else 0
    raw = torch.stack([r.expand(sizes) for r in raws], place)
    new = _static(call, len(raws), "stack")
    axes = [*template.axes[:place], new, *template.axes[place:]]
    return template.like(raw, axes, feature=template.feature)


@register_layer("concat", concat=False)
def concat(call: LayerCall, *, out_dim: Any = None, allow_broadcast: bool = False) -> NamedTensor:
    """Join along the axes that `from` = [(layer, axis), ...] names; dynamic axes one behind the other's real frames."""
    del out_dim, allow_broadcast
    pairs = call.spec.sources
    if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise call.error("'from' must be a list of (layer, axis)")
    tensors = [call.layer(name) for name, _ in pairs]
    along = [call.axis(t, spec) for t, (_, spec) in zip(tensors, pairs, strict=True)]
    if all(a is t.feature for a, t in zip(along, tensors, strict=True)):
        return call.concat(tensors)
    if any(a.is_dynamic for a in along):
        return _concat_dynamic(call, tensors, along)
    parts = [Axis("part", a.size) for a in along]
    renamed = [t.relabelled(a, p) for t, a, p in zip(tensors, along, parts, strict=True)]
    unified = unify(renamed, call.scope.all_hidden | frozenset(parts))
    shared = [a for a in common_axes(unified) if a not in parts]
    new = static_axis(f"{call.name}:concat", sum(a.size for a in along))
    raw = torch.cat([t.expanded([*shared, p]) for t, p in zip(unified, parts, strict=True)], -1)
    return unified[0].like(raw, [*shared, new])


def _concat_dynamic(call: LayerCall, tensors: list[NamedTensor], along: list[Axis]) -> NamedTensor:
    """Sequences of different lengths, each behind the last real frame of the one before."""
    parts = [Axis("part", a.size, lengths=a.lengths, over=a.over) for a in along]
    renamed = [t.relabelled(a, p) for t, a, p in zip(tensors, along, parts, strict=True)]
    unified = unify(renamed, call.scope.all_hidden | frozenset(parts))
    batch = unified[0].batch_axis
    if batch is None:
        raise call.error("needs a batch axis")
    shared = [a for a in common_axes(unified) if a not in parts and a is not batch]
    lengths = [_lengths(p, batch) for p in parts]
    total = torch.stack(lengths).sum(0)
    first = unified[0].expanded([batch, parts[0], *shared])
    out = first.new_zeros(batch.size, int(total.max()), *first.shape[2:])
    start = torch.zeros_like(total)
    for tensor, part, length in zip(unified, parts, lengths, strict=True):
        values = tensor.expanded([batch, part, *shared])
        rows = [torch.arange(int(n)) for n in length]
        b = torch.cat([torch.full_like(r, i) for i, r in enumerate(rows)])
        t = torch.cat(rows)
        out = out.index_put((b, t + start[b]), values[b, t])
        start = start + length
    new = Axis(f"{call.name}:concat", int(total.max()), lengths=total, over=(batch,))
    return unified[0].like(out, [batch, new, *shared], time=new)


def _lengths(axis: Axis, batch: Axis) -> Tensor:
    if axis.lengths is None:
        return torch.full((batch.size,), axis.size)
    return axis.lengths.expand(batch.size)


@register_layer("swap_axes")
def swap_axes(call: LayerCall, *, axis1: Any, axis2: Any) -> NamedTensor:
    """Two axes change places; the marks for time and feature stay at the places."""
    x = call.x
    a, b = call.axis(x, axis1), call.axis(x, axis2)
    swapped = {a: b, b: a}
    axes = [swapped.get(axis, axis) for axis in x.axes]
    return x.like(
        x.to_axes(axes),
        axes,
        feature=swapped.get(x.feature, x.feature) if x.feature else None,
        time=swapped.get(x.time, x.time) if x.time else None,
    )


@register_layer("transpose")
def transpose(call: LayerCall, *, perm: Mapping[Any, Any]) -> NamedTensor:
    """Reorder axes: {new place: axis that comes there}."""
    x = call.x
    moved = {call.axis(x, place): call.axis(x, source) for place, source in perm.items()}
    if set(moved) != set(moved.values()):
        raise call.error(f"perm = {perm!r} is no permutation")
    axes = [moved.get(axis, axis) for axis in x.axes]
    return x.ordered(axes)


@register_layer("reinterpret_data", framewise=True, refs=("size_base", "batch_dim_base"))
def reinterpret_data(
    call: LayerCall,
    *,
    switch_axes: Any = None,
    size_base: str | None = None,
    batch_dim_base: str | None = None,
    set_axes: Mapping[str, Any] | None = None,
    set_dim_tags: Mapping[str, Any] | None = None,
    enforce_batch_major: bool = False,
    enforce_time_major: bool = False,
    set_sparse: bool | None = None,
    set_sparse_dim: Any = None,
    increase_sparse_dim: int | None = None,
) -> NamedTensor:
    """The same values, labelled differently."""
    x = call.x
    if switch_axes:
        x = _switched(call, x, switch_axes)
    for name, axis in (set_axes or {}).items():
        x = _marked(call, x, name, axis)
    if size_base is not None:
        x = _resized(call, x, call.layer(size_base))
    if batch_dim_base is not None:
        old, new = x.batch_axis, call.layer(batch_dim_base).batch_axis
        if old is not None and new is not None and old is not new:
            x = x.relabelled(old, new)
    for axis, tag in (set_dim_tags or {}).items():
        x = _tagged(call, x, axis, tag)
    if enforce_batch_major:
        x = x.batch_major()
    if enforce_time_major and call.finder.time(x) is not None:
        time = call.time(x)
        x = x.ordered([time, *[axis for axis in x.axes if axis is not time]])
    if set_sparse is not None or set_sparse_dim is not None or increase_sparse_dim:
        x = _with_classes(call, x, set_sparse, set_sparse_dim, increase_sparse_dim)
    return x


def _with_classes(call: LayerCall, x: NamedTensor, sparse: bool | None, dim: Any, increase: int | None) -> NamedTensor:
    size = getattr(dim, "dimension", dim)
    if sparse is False:
        return x.like(x.raw, sparse_dim=None, vocab=None)
    classes = size if size is not None else x.sparse_dim
    if classes is None:
        raise call.error("set_sparse needs set_sparse_dim")
    vocab = x.vocab if classes == x.sparse_dim and not increase else None
    return x.like(x.raw, sparse_dim=classes + (increase or 0), feature=None, vocab=vocab)


def _switched(call: LayerCall, x: NamedTensor, names: Any) -> NamedTensor:
    """Exchange the meanings of two axes."""
    pair = [name.strip() for name in names.split(",")] if isinstance(names, str) and "," in names else list(names)
    a, b = (call.axis(x, name) for name in pair)
    swap = {a: b, b: a}
    feature = swap.get(x.feature, x.feature) if x.feature else None
    time = call.finder.time(x)
    if a.kind == BATCH or b.kind == BATCH:
        raise call.error("exchanging the batch axis is not supported; nearest: class 'transpose'")
    return x.like(x.raw, feature=feature, time=swap.get(time, time) if time else None)


def _marked(call: LayerCall, x: NamedTensor, name: str, axis: Any) -> NamedTensor:
    key = name.lower()
    found = call.axis(x, axis) if axis is not None else None
    if key in ("t", "time"):
        return x.like(x.raw, time=found)
    if key in ("f", "feature"):
        return x.like(x.raw, feature=found)
    if key in ("b", "batch") and found is x.batch_axis:
        return x
    raise call.error(f"set_axes: {name!r} is not supported; nearest: 'T', 'F'")


def _resized(call: LayerCall, x: NamedTensor, base: NamedTensor) -> NamedTensor:
    """Take the dynamic axes of another layer, in order."""
    mine = [axis for axis in call.finder.visible(x) if axis.is_dynamic]
    theirs = [axis for axis in call.finder.visible(base) if axis.is_dynamic]
    if len(mine) != len(theirs):
        raise call.error(f"size_base: {len(mine)} dynamic axes here, {len(theirs)} there")
    for old, new in zip(mine, theirs, strict=True):
        if old.size < new.size and not call.run.building:
            raise call.error(f"size_base: axis {old} has size {old.size}, but {new} there")
        if old.size != new.size:  # more frames than needed, or made-up streams, which need not fit each other
            x, old = _fitted(x, old, new.size)
        x = x.relabelled(old, new)
    return x


def _fitted(x: NamedTensor, axis: Axis, size: int) -> tuple[NamedTensor, Axis]:
    """The first `size` entries of an axis, the last one repeated if there are fewer."""
    index = torch.arange(size, device=x.raw.device).clamp(max=axis.size - 1)
    new = axis.derived(("fitted", size), lambda: Axis("fitted", size, lengths=torch.full((1,), size)))
    before = x.before_activation

    def take(value: NamedTensor) -> NamedTensor:
        axes = [new if a is axis else a for a in value.axes]
        return value.like(value.raw.index_select(value.index(axis), index), axes)

    made = take(x)
    return made.like(made.raw, before_activation=(before[0], take(before[1])) if before else None), new


def _tagged(call: LayerCall, x: NamedTensor, axis: Any, tag: Any) -> NamedTensor:
    """Give an axis another identity; equal tags mean the same axis for equal lengths."""
    old = call.axis(x, axis)
    name = tag if isinstance(tag, str) else getattr(tag, "description", None) or getattr(tag, "name", str(tag))
    new = old.derived(("tag", name), lambda: old.copy(str(name)))
    return x.relabelled(old, new)


@register_layer("split", framewise=True)
def split(
    call: LayerCall, *, axis: Any = None, num_splits: int | None = None, size_splits: Any = None, out_dims: Any = None
) -> NamedTensor:
    """Parts of an axis, as `layer/0`, `layer/1`, ..."""
    x = call.x
    over = call.axis(x, axis) if axis is not None else call.feature(x)
    sizes = size_splits or [getattr(dim, "dimension", dim) for dim in out_dims or ()]
    if num_splits:
        sizes = [over.size // num_splits] * num_splits
    if not sizes or sum(sizes) != over.size:
        raise call.error(f"the parts {sizes} do not add up to {over}")
    parts = {}
    for i, raw in enumerate(x.raw.split(list(sizes), x.index(over))):
        new = feature_axis if over is x.feature else static_axis
        made = functools.partial(new, f"{call.name}_split{i}", sizes[i])
        part = call.run.batch.derived((call.path, "split", i), made)
        axes = [part if a is over else a for a in x.axes]
        parts[str(i)] = x.like(raw, axes, feature=part if over is x.feature else x.feature)
    return NamedTensor(x.raw, x.axes, feature=x.feature, time=x.time, sparse_dim=x.sparse_dim, parts=parts)


@register_layer("tile", framewise=True)
def tile(call: LayerCall, *, multiples: Mapping[str, int], out_dims: Any = None) -> NamedTensor:
    """Repeat the content of axes: {axis: times}."""
    del out_dims
    x = call.x
    for spec, times in multiples.items():
        axis = call.axis(x, spec)
        if axis.is_dynamic or axis.is_batch_like:
            raise call.error(f"cannot tile {axis}; nearest: class 'repeat'")
        new = (
            call.new_feature(axis.size * times, "tile")
            if axis is x.feature
            else _static(call, axis.size * times, "tile")
        )
        repeats = [times if a is axis else 1 for a in x.axes]
        axes = [new if a is axis else a for a in x.axes]
        x = x.like(x.raw.repeat(repeats), axes, feature=new if axis is x.feature else x.feature)
    return x


@register_layer("flatten_batch")
def flatten_batch(call: LayerCall, *, axis: Any = "T", batch_major: bool = True) -> NamedTensor:
    """Batch and another axis become one batch axis."""
    x = call.x
    over, batch = call.axis(x, axis), x.batch_axis
    if batch is None:
        raise call.error("needs a batch axis")
    order = [batch, over] if batch_major else [over, batch]
    rest = [a for a in x.axes if a not in order]
    key = ("flatten", over, batch_major)
    new = batch.derived(key, lambda: Axis(f"{call.name}:flat", batch.size * over.size, BATCH))
    new._derived["flattened from"] = (over, batch_major)  # type: ignore[assignment]
    new._derived["batch before"] = batch
    return x.like(x.expanded([*order, *rest]).flatten(0, 1), [new, *rest])


@register_layer("unflatten_batch")
def unflatten_batch(call: LayerCall) -> NamedTensor:
    """Undo `flatten_batch`."""
    x = call.x
    flat = x.batch_axis
    source: Any = flat._derived.get("flattened from") if flat is not None else None
    if flat is None or source is None:
        raise call.error("the input does not come from 'flatten_batch'")
    batch, (over, batch_major) = flat._derived["batch before"], source
    order = [batch, over] if batch_major else [over, batch]
    rest = [a for a in x.axes if a is not flat]
    raw = x.expanded([flat, *rest]).unflatten(0, [a.size for a in order])
    return x.like(raw, [*order, *rest], time=over if over.is_dynamic else x.time)


@register_layer("split_batch_time")
def split_batch_time(call: LayerCall, *, base: str) -> NamedTensor:
    """Undo the merge of batch and time, with the sizes of another layer."""
    x, reference = call.x, call.layer(base)
    flat, batch = x.batch_axis, reference.batch_axis
    time = call.time(reference)
    if flat is None or batch is None or flat.size != batch.size * time.size:
        raise call.error(f"the batch axis {flat} is not that of {list(reference.axes)} merged")
    rest = [a for a in x.axes if a is not flat]
    return x.like(x.expanded([flat, *rest]).unflatten(0, [batch.size, time.size]), [batch, time, *rest])


@register_layer("combine_dims", framewise=True)
def combine_dims(call: LayerCall, *, axes: Any) -> NamedTensor:
    """Like `merge_dims`, for the older name."""
    return merge_dims(call, axes=axes)
