"""Layers that reduce or accumulate over axes; padding never counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.axis import Axis, static_axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.errors import nearest
from returnn_hydra.network.named_tensor import NamedTensor, broadcast, unify
from returnn_hydra.network.registry import register_layer


def _count(x: NamedTensor, over: Sequence[Axis]) -> Tensor:
    """How many real entries the reduction runs over, with size 1 at the reduced axes."""
    dynamic = [axis for axis in over if axis.is_dynamic]
    ones = x.dense(torch.ones([a.size for a in x.axes], device=x.raw.device))
    return ones.dense(ones.masked(dynamic, 0.0)).raw.sum([x.index(a) for a in over], keepdim=True)


def _lowest(dtype: torch.dtype) -> float:
    return -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min


def _highest(dtype: torch.dtype) -> float:
    return torch.inf if dtype.is_floating_point else torch.iinfo(dtype).max


def reduce_axes(x: NamedTensor, over: Sequence[Axis], mode: str) -> Tensor:
    """Reduce, keeping the axes with size 1."""
    dims = [x.index(axis) for axis in over]
    if x.raw.dtype == torch.bool and mode in ("sum", "mean", "min", "max"):
        x = x.dense(x.raw.to(torch.float32 if mode == "mean" else torch.int32))
    low = _lowest(x.raw.dtype) if x.raw.dtype != torch.bool else 0
    functions: dict[str, Callable[[], Tensor]] = {
        "sum": lambda: x.masked(over, 0).sum(dims, keepdim=True),
        "mean": lambda: x.masked(over, 0).sum(dims, keepdim=True) / _count(x, over).clamp(min=1.0),
        "avg": lambda: x.masked(over, 0).sum(dims, keepdim=True) / _count(x, over).clamp(min=1.0),
        "max": lambda: x.masked(over, low).amax(dims, keepdim=True),
        "min": lambda: x.masked(over, _highest(x.raw.dtype)).amin(dims, keepdim=True),
        "prod": lambda: x.masked(over, 1).prod(dims[0], keepdim=True),
        "logsumexp": lambda: torch.logsumexp(x.masked(over, low), dims, keepdim=True),
        "argmax": lambda: x.masked(over, low).argmax(dims[0], keepdim=True).to(torch.int32),
        "argmin": lambda: x.masked(over, _highest(x.raw.dtype)).argmin(dims[0], keepdim=True).to(torch.int32),
        "any": lambda: x.masked(over, 0).any(dims[0], keepdim=True),
        "all": lambda: x.masked(over, 1).all(dims[0], keepdim=True),
    }
    if mode not in functions:
        raise ValueError(mode)
    return functions[mode]()


MODES = ("sum", "mean", "avg", "max", "min", "prod", "logsumexp", "argmax", "argmin", "any", "all")


@register_layer("reduce")
def reduce(
    call: LayerCall,
    *,
    mode: str,
    axes: Any = None,
    axis: Any = None,
    keep_dims: bool = False,
    enforce_batch_dim_axis: int | None = None,
    use_time_mask: bool | None = None,
) -> NamedTensor:
    """Sum, mean, max, ... over axes."""
    del enforce_batch_dim_axis, use_time_mask
    x = call.x
    over = call.axes(x, axis if axis is not None else axes)
    if not over:
        raise call.error(f"axis {axis if axis is not None else axes!r} means no axis of {list(x.axes)}")
    if mode not in MODES:
        raise call.error(f"mode {mode!r} is not supported{nearest(mode, MODES)}")
    if len(over) > 1 and mode in ("argmax", "argmin", "prod", "any", "all"):
        raise call.error(f"mode {mode!r} takes one axis, not {over}")
    raw = reduce_axes(x, over, mode)
    changes: dict[str, Any] = {}
    if mode in ("argmax", "argmin"):
        changes = {"sparse_dim": over[0].size if not over[0].is_dynamic else None, "vocab": None}
    make = x.like if mode in ("sum", "max", "min") and x.feature is None else x.dense
    if keep_dims:
        one = {axis: static_axis(f"{call.name}:keep", 1) for axis in over}
        return make(
            raw,
            [one.get(a, a) for a in x.axes],
            feature=one.get(x.feature, x.feature) if x.feature else None,
            time=one.get(call.finder.time(x)),  # type: ignore[arg-type]
            **changes,
        )
    rest = [axis for axis in x.axes if axis not in over]
    feature = call.feature_left(x, rest) if not changes else None
    return make(raw.reshape([a.size for a in rest]), rest, feature=feature, **changes)


@register_layer("softmax_over_spatial", framewise=True, refs=("start", "window_start", "window_size"))
def softmax_over_spatial(
    call: LayerCall,
    *,
    axis: Any = None,
    energy_factor: float | None = None,
    start: str | None = None,
    window_start: Any = None,
    window_size: Any = None,
    use_time_mask: bool | None = None,
    log_space: bool = False,
) -> NamedTensor:
    """Softmax over the real positions of an axis, which becomes the last one; 0 at the padding."""
    x = call.x
    over = call.axis(x, axis) if axis is not None else call.time(x)
    x = x.moved_last(over)
    raw = x.raw
    keep = x.mask(over) if over.is_dynamic and use_time_mask is not False else None
    if any(part is not None for part in (start, window_start, window_size)):
        x, keep = _window_mask(call, x, over, keep, start, window_start, window_size)
        raw = x.raw
    mask = keep.to_axes(x.axes) if keep is not None else None
    if mask is not None:
        raw = torch.where(mask, raw, torch.full((), -torch.inf, device=raw.device, dtype=raw.dtype))
    if energy_factor:
        raw = raw * energy_factor
    result = torch.log_softmax(raw, -1) if log_space else torch.softmax(raw, -1)
    if mask is not None:
        result = torch.where(mask, result, torch.zeros((), device=raw.device, dtype=raw.dtype))
    name = "log_softmax" if log_space else "softmax"
    return x.dense(result, before_activation=(name, x.dense(raw)))


def _window_mask(
    call: LayerCall, x: NamedTensor, over: Axis, keep: NamedTensor | None, start: Any, window_start: Any, size: Any
) -> tuple[NamedTensor, NamedTensor]:
    position = NamedTensor(torch.arange(over.size, device=x.raw.device), (over,))
    tests: list[NamedTensor] = [keep] if keep is not None else []

    def compared(layer: Any, test: Callable[[Tensor, Tensor], Tensor], add: Any = 0) -> None:
        bound = call.layer(layer) if isinstance(layer, str) else _number(layer, x)
        extra = call.layer(add) if isinstance(add, str) else _number(add, x)
        raws, template = broadcast([bound, extra, position], call.scope.all_hidden)
        tests.append(template.dense(test(raws[2], raws[0] + raws[1]).expand([a.size for a in template.axes])))

    if start is not None:
        compared(start, torch.ge)
    if window_start is not None:
        compared(window_start, torch.ge)
        if size is not None:
            compared(window_start, torch.lt, size)
    raws, template = broadcast([*tests, x], call.scope.all_hidden)
    mask = raws[0]
    for other in raws[1:-1]:
        mask = mask & other
    sizes = [a.size for a in template.axes]
    full = template.dense(raws[-1].expand(sizes), feature=x.feature).moved_last(over)
    return full, template.dense(mask.expand(sizes)).moved_last(over)


def _number(value: Any, x: NamedTensor) -> NamedTensor:
    return NamedTensor(torch.tensor(value, device=x.raw.device), ())


@register_layer("cumsum", sequential=True)
def cumsum(
    call: LayerCall, *, axis: Any = "T", additional_left_summand_per_element: Any = None, reverse: bool = False
) -> NamedTensor:
    """Running sum over an axis; in a loop, over the frames so far."""
    x = call.x
    if call.stepping and call.finder.time(x) is None:
        before = call.state()
        extra = additional_left_summand_per_element or 0
        raw = x.raw + extra if before is None else _aligned(call, before["sum"], x) + x.raw + extra
        y = x.like(raw)
        call.set_state({"sum": y})
        return y
    over = call.loop_axis if call.loop_axis in x.axes else call.axis(x, axis)
    assert over is not None
    dim = x.index(over)
    raw = x.masked([over], 0)
    if additional_left_summand_per_element:
        raw = raw + additional_left_summand_per_element
    raw = raw.flip(dim).cumsum(dim).flip(dim) if reverse else raw.cumsum(dim)
    return x.like(raw)


def _aligned(call: LayerCall, state: NamedTensor, x: NamedTensor) -> Tensor:
    old, new = unify([state, x], call.scope.all_hidden)
    return old.to_axes(new.axes)


@register_layer("accumulate_mean")
def accumulate_mean(
    call: LayerCall,
    *,
    exp_average: float,
    axes: Any = "bt",
    initial_value: float | None = None,
    is_prob_distribution: bool | None = None,
) -> NamedTensor:
    """A running mean over all batches; updated in training, after its use."""
    x = call.x
    over = call.axes(x, axes)
    rest = [axis for axis in x.axes if axis not in over]
    if is_prob_distribution and initial_value is None:
        initial_value = 1.0 / rest[0].size
    # TensorFlow numbers the variable, as the mean of the batch has its name already
    mean = call.param("mean_1", [a.size for a in rest], initial_value or 0.0, buffer=True)
    used = mean.clone()
    if call.train and not call.run.building:
        with torch.no_grad():
            mean += exp_average * (reduce_axes(x.dense(x.raw.detach()), over, "mean").view_as(mean) - mean)
    return x.dense(used, rest)


@register_layer("top_k", refs=("k",))
def top_k(call: LayerCall, *, axis: Any, k: int, k_dim: Any = None, sorted: bool = True) -> NamedTensor:
    """The k largest entries of an axis; `layer/indices` has their places."""
    if not isinstance(k, int):
        raise call.error(f"k = {k!r}, expected a number")
    del k_dim
    x = call.x
    over = call.axis(x, axis)
    values, indices = torch.topk(x.masked([over], _lowest(x.raw.dtype)), k, x.index(over), sorted=sorted)
    new = static_axis(f"{call.name}:topk", k)
    axes = [new if a is over else a for a in x.axes]
    feature = x.feature if x.feature is not over else None  # places by rank are no features
    places = x.like(indices.to(torch.int32), axes, feature=None, sparse_dim=over.size)
    return x.dense(values, axes, feature=feature, parts={"indices": places, "indices0": places})
