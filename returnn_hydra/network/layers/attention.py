"""Attention between layers, and products over chosen axes."""

from __future__ import annotations

import math
from typing import Any

import torch

from returnn_hydra.network.axis import BATCH, BEAM, Axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.named_tensor import NamedTensor, common_axes, latest_beam, to_beam, unify
from returnn_hydra.network.registry import register_layer


def _maskable(tensor: NamedTensor, axes: list[Axis]) -> list[Axis]:
    """Dynamic axes; those whose lengths differ along axes that only the other factor has (frames so far), it masks."""
    batch = (BATCH, BEAM)
    return [a for a in axes if a.is_dynamic and all(over in tensor.axes or over.kind in batch for over in a.over)]


def dot_product(
    call: LayerCall,
    a: NamedTensor,
    b: NamedTensor,
    reduce_a: list[Axis],
    reduce_b: list[Axis],
    var_a: list[Axis],
    var_b: list[Axis],
    use_mask: bool = True,
) -> NamedTensor:
    """Sum over pairs of axes; `var` axes stay apart, all others are common. Order: common, var of a, var of b."""
    beam = latest_beam([a, b])
    if beam is not None:
        a, b = to_beam(a, beam), to_beam(b, beam)
    a, b, var_b = _separated(a, b, var_a, var_b)
    if use_mask:
        a, b = (t.like(t.masked(_maskable(t, axes), 0)) for t, axes in ((a, reduce_a), (b, reduce_b)))
    own = frozenset([*reduce_a, *reduce_b, *var_a, *var_b])
    a, b = unify([a, b], call.scope.all_hidden | own)
    inner_a, inner_b = [*reduce_a, *var_a], [*reduce_b, *var_b]
    shared_a = [axis for axis in a.axes if axis not in inner_a]
    shared_b = [axis for axis in b.axes if axis not in inner_b]
    shared = list(common_axes([_template(a, shared_a), _template(b, shared_b)]))
    size = math.prod(axis.size for axis in reduce_a)
    if size != math.prod(axis.size for axis in reduce_b):
        raise call.error(f"the axes to reduce differ in size: {reduce_a} and {reduce_b}")
    sizes = [axis.size for axis in shared]
    left = a.to_axes([*shared, *var_a, *reduce_a]).flatten(len(shared) + len(var_a)) if reduce_a else a.raw
    left = left.reshape(*left.shape[: len(shared)], -1, size)
    right = b.to_axes([*shared, *reduce_b, *var_b])
    right = right.reshape(*right.shape[: len(shared)], size, -1)
    dtype = torch.promote_types(left.dtype, right.dtype)
    raw = torch.matmul(left.to(dtype), right.to(dtype))
    raw = raw.expand(*sizes, *raw.shape[-2:]).reshape(*sizes, *[axis.size for axis in (*var_a, *var_b)])
    feature = b.feature if b.feature in var_b else a.feature if a.feature in var_a else None
    if feature is None:
        feature = next((t.feature for t in (a, b) if t.feature in shared), None)
    return NamedTensor(raw, (*shared, *var_a, *var_b), feature=feature)


def _template(x: NamedTensor, axes: list[Axis]) -> NamedTensor:
    empty = torch.empty((), device=x.raw.device).expand([axis.size for axis in axes])
    return NamedTensor(empty, tuple(axes), feature=x.feature if x.feature in axes else None)


def _separated(
    a: NamedTensor, b: NamedTensor, var_a: list[Axis], var_b: list[Axis]
) -> tuple[NamedTensor, NamedTensor, list[Axis]]:
    """The same axis as `var` on both sides means its square: give the second one a name of its own."""
    new = []
    for axis in var_b:
        if axis in var_a:
            twin = axis.derived("second", axis.copy)
            b = b.relabelled(axis, twin)
            axis = twin
        new.append(axis)
    return a, b, new


@register_layer("dot", concat=False, framewise=True)
def dot(
    call: LayerCall,
    *,
    reduce: Any = None,
    red1: Any = None,
    red2: Any = None,
    var1: Any = "__default__",
    var2: Any = "__default__",
    add_var2_if_empty: bool | None = None,
    use_mask: bool = True,
    debug: bool = False,
) -> NamedTensor:
    """Matrix product of two layers over `red` axes, with `var` axes of each side kept apart."""
    del debug
    if len(call.sources) != 2:
        raise call.error(f"needs two sources, not {len(call.sources)}")
    a, b = call.sources
    old = call.run.user.get("behavior_version", 0) < 3
    if reduce is not None:
        red1 = red2 = reduce
    if red1 is None and old:
        red1 = -1
    if red2 is None and old:
        red2 = -2
    if red1 is None or red2 is None:
        raise call.error("options 'red1' and 'red2' are missing")
    reduce_a, reduce_b = call.axes(a, red1), call.axes(b, red2)
    if not reduce_a or not reduce_b:
        raise call.error(f"red1 = {red1!r}, red2 = {red2!r} mean no axes of {list(a.axes)} and {list(b.axes)}")
    if var1 == "__default__" and var2 == "__default__" and old and reduce is None and isinstance(red1, int):
        var1, var2 = -2, -1
    if var1 in ("auto", "__default__") or var2 in ("auto", "__default__"):
        var_a, var_b = _auto_vars(call, a, b, reduce_a, reduce_b)
    else:
        var_a, var_b = call.axes(a, var1), call.axes(b, var2)
    if (old if add_var2_if_empty is None else add_var2_if_empty) and not var_b:
        result = dot_product(call, a, b, reduce_a, reduce_b, var_a, var_b, use_mask)
        new = call.new_feature(1, "var2")
        return result.dense(result.raw.unsqueeze(-1), [*result.axes, new], feature=new)
    return dot_product(call, a, b, reduce_a, reduce_b, var_a, var_b, use_mask)


def _auto_vars(
    call: LayerCall, a: NamedTensor, b: NamedTensor, reduce_a: list[Axis], reduce_b: list[Axis]
) -> tuple[list[Axis], list[Axis]]:
    """Axes that only one side has."""
    free_a = [x for x in call.finder.visible(a) if x not in reduce_a and not x.is_batch_like]
    free_b = [x for x in call.finder.visible(b) if x not in reduce_b and not x.is_batch_like]
    pairs = [(x, y) for x in free_a for y in free_b if x is y or (x.is_dynamic == y.is_dynamic and x.same_sizes(y))]
    return [x for x in free_a if x not in [p[0] for p in pairs]], [y for y in free_b if y not in [p[1] for p in pairs]]


@register_layer("generic_attention", concat=False, framewise=True, refs=("weights", "base"))
def generic_attention(call: LayerCall, *, weights: str, base: str, auto_squeeze: bool = True) -> NamedTensor:
    """Sum over time of weights * base; axes of the weights of the base's sizes (heads) are common."""
    w, values = call.layer(weights), call.layer(base)
    time = call.time(values)
    feature = call.feature(values)
    over = time if time in w.axes else None
    if over is None:
        candidates = [axis for axis in call.finder.visible(w) if axis.is_dynamic and axis.same_sizes(time)]
        over = candidates[0] if candidates else call.time(w)
    heads = [axis for axis in call.finder.visible(values) if axis not in (time, feature) and not axis.is_batch_like]
    rest = [axis for axis in call.finder.visible(w) if axis is not over and not axis.is_batch_like]
    for axis in reversed(rest):
        if heads and axis.size == heads[-1].size:
            head = heads.pop()
            if axis is not head:
                w = w.relabelled(axis, head)
            rest = [other for other in rest if other is not axis]
        elif auto_squeeze and axis.size == 1:
            w = w.select(axis, 0)
            rest = [other for other in rest if other is not axis]
    if heads:
        raise call.error(f"the base has axes {heads} that the weights {list(w.axes)} lack")
    return dot_product(call, w, values, [over], [time], rest, [feature])


@register_layer("dot_attention", concat=False, framewise=True, refs=("base", "base_ctx"))
def dot_attention(call: LayerCall, *, base: str, base_ctx: str, energy_factor: float | None = None) -> NamedTensor:
    """softmax(base_ctx . source) weighted sum of base."""
    values, keys, query = call.layer(base), call.layer(base_ctx), call.concat(call.sources)
    time = call.time(keys)
    energy = dot_product(call, keys, query, [call.feature(keys)], [call.feature(query)], [time], [])
    raw = energy.masked([time], -torch.inf)
    weights = energy.dense(torch.softmax(raw * (energy_factor or 1.0), energy.index(time)))
    value_time = call.time(values)
    if value_time is not time:
        weights = weights.relabelled(time, value_time)
    return dot_product(call, weights, values, [value_time], [value_time], [], [call.feature(values)])


@register_layer("batch_softmax")
def batch_softmax(call: LayerCall) -> NamedTensor:
    """Softmax over all frames and features of a sequence together."""
    x = call.x
    time, feature = call.time(x), call.feature(x)
    rest = [axis for axis in x.axes if axis not in (time, feature)]
    energies = x.like(x.masked([time], -math.inf)).ordered([*rest, time, feature])
    raw = torch.softmax(energies.raw.flatten(-2), -1).view(energies.raw.shape)
    return energies.like(raw)


@register_layer("gauss_window_attention", refs=("base",))
def gauss_window_attention(
    call: LayerCall,
    *,
    base: str,
    window_size: int,
    std: float = 1.0,
    inner_size: int | None = None,
    inner_size_step: float = 0.5,
) -> NamedTensor:
    """A weighted sum of the frames of `base` around the position in the input, weights of a normal distribution.

    The window has a fixed number of frames around the rounded position; frames outside of the sequence count as its
    first or last one. With `inner_size`, several positions around the given one: one result for each.
    """
    position, frames = call.x, call.layer(base)
    time, feature = call.time(frames), call.feature(frames)
    if position.feature is not None:
        position = position.select(position.feature, 0)
    beam = latest_beam([position, frames])
    if beam is not None:
        position, frames = to_beam(position, beam), to_beam(frames, beam)
    rest = [axis for axis in frames.axes if axis not in (time, feature)]
    places = position.expanded(rest)  # (N)
    offsets = torch.arange(window_size, device=places.device) - window_size // 2
    indices = places.round().long()[..., None] + offsets  # (N, W)
    values = frames.expanded([*rest, time, feature])
    last = torch.tensor(time.size)
    if time.lengths is not None:
        last = NamedTensor(time.lengths, time.over).expanded(rest)[..., None]
    clipped = torch.minimum(indices.clamp(min=0), (last - 1).to(indices.device))
    gathered = values.gather(-2, clipped[..., None].expand(*clipped.shape, feature.size))  # (N, W, F)
    shifts = [i * inner_size_step - inner_size / 2 for i in range(inner_size)] if inner_size else [0.0]
    centres = places[..., None] + torch.tensor(shifts, device=places.device)  # (N, I)
    distances = centres[..., None] - indices[..., None, :]
    weights = torch.exp(-distances.square() / (2 * std**2)) / (std * math.sqrt(2 * math.pi))  # (N, I, W)
    raw = weights @ gathered
    if not inner_size:
        return NamedTensor(raw.squeeze(-2), (*rest, feature), feature=feature)
    inner = Axis(f"{call.name}:inner", inner_size)
    return NamedTensor(raw, (*rest, inner, feature), feature=feature)
