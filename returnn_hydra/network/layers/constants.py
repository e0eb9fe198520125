"""Layers without input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from returnn_hydra.network.axis import Axis, static_axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.layers.elementwise import TORCH_TYPES
from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.network.registry import register_layer


@register_layer("constant", concat=False)
def constant(
    call: LayerCall,
    *,
    value: Any = 0.0,
    shape: Any = None,
    dtype: str | None = None,
    with_batch_dim: bool = False,
    sparse_dim: Any = None,
    feature_dim: Any = None,
    shape_deps: Any = None,
) -> NamedTensor:
    """A number or an array."""
    del shape_deps, feature_dim
    array = torch.as_tensor(np.asarray(value), device=call.device)
    if dtype is not None:
        array = array.to(TORCH_TYPES[dtype])
    elif array.dtype in (torch.float64, torch.int64):
        array = array.to(torch.float32 if array.dtype == torch.float64 else torch.int32)
    sizes = tuple(array.shape) if shape is None else tuple(getattr(size, "dimension", size) for size in shape)
    array = array.expand(sizes)
    axes = [_axis(call, i, size) for i, size in enumerate(sizes)]
    if with_batch_dim:
        axes = [call.run.batch, *axes]
        array = array.expand(call.run.batch.size, *sizes)
    feature = axes[-1] if sizes and array.is_floating_point() else None
    return NamedTensor(array, tuple(axes), feature=feature, sparse_dim=getattr(sparse_dim, "dimension", sparse_dim))


def _axis(call: LayerCall, i: int, size: int) -> Axis:
    return call.run.batch.derived((call.path, "axis", i, size), lambda: static_axis(f"{call.name}:dim{i}", size))


@register_layer("variable", concat=False, refs=("init_by_layer",))
def variable(
    call: LayerCall,
    *,
    shape: Sequence[Any],
    dtype: str = "float32",
    add_batch_axis: bool = False,
    add_time_axis: bool = False,
    init: Any = None,
    init_by_layer: Any = None,
    non_critical_for_restore: bool = False,
    validate_shape: bool = True,
) -> NamedTensor:
    """A parameter of a given shape."""
    del non_critical_for_restore, validate_shape
    if init_by_layer is not None:
        raise call.error("option 'init_by_layer' is not supported; nearest: 'init'")
    if dtype != "float32":
        raise call.error(f"dtype = {dtype!r} is not supported; nearest: 'float32'")
    sizes = tuple(getattr(size, "dimension", size) for size in shape)
    values = call.param(call.name, sizes, 0.0 if init is None else init)
    axes = [_axis(call, i, size) for i, size in enumerate(sizes)]
    feature = axes[-1] if axes else None
    if add_time_axis:
        time = static_axis(f"{call.name}:time", 1)
        values, axes = values[None], [time, *axes]
    if add_batch_axis:
        values, axes = values.expand(call.run.batch.size, *values.shape), [call.run.batch, *axes]
    return NamedTensor(values, tuple(axes), feature=feature)


@register_layer("range", concat=False)
def range_layer(
    call: LayerCall,
    *,
    limit: float,
    start: float = 0,
    delta: float = 1,
    dtype: str | None = None,
    sparse: bool = False,
    out_spatial_dim: Any = None,
) -> NamedTensor:
    """start, start + delta, ... below limit."""
    del out_spatial_dim
    floating = any(isinstance(number, float) for number in (limit, start, delta))
    kind = TORCH_TYPES[dtype or ("float32" if floating else "int32")]
    values = torch.arange(start, limit, delta, device=call.device).to(kind)
    axis = call.run.batch.derived((call.path, "range"), lambda: static_axis(f"{call.name}:range", len(values)))
    return NamedTensor(values, (axis,), sparse_dim=len(values) if sparse else None)


@register_layer("train_flag", concat=False)
def train_flag(call: LayerCall) -> NamedTensor:
    """True in training."""
    return NamedTensor(torch.tensor(call.train, device=call.device), ())


@register_layer("global_train_step", concat=False)
def global_train_step(call: LayerCall) -> NamedTensor:
    """Number of updates so far."""
    return NamedTensor(torch.tensor(call.run.step, device=call.device), ())


@register_layer("random", concat=False)
def random(
    call: LayerCall,
    *,
    shape: Sequence[Any],
    distribution: str,
    mean: float | None = None,
    stddev: float | None = None,
    bound: float | None = None,
    minval: float | None = None,
    maxval: float | None = None,
    dtype: str = "float32",
    seed: int | None = None,
    static: bool | None = None,
) -> NamedTensor:
    """Random numbers, new ones in every pass: uniform or normal."""
    if seed is not None or static:
        raise call.error("options 'seed' and 'static' are not supported")
    sizes = tuple(getattr(size, "dimension", size) for size in shape)
    if distribution == "uniform":
        low, high = (-bound, bound) if bound is not None else (minval or 0.0, 1.0 if maxval is None else maxval)
        values = torch.rand(sizes, device=call.device) * (high - low) + low
    elif distribution == "normal":
        values = torch.randn(sizes, device=call.device) * (1.0 if stddev is None else stddev) + (mean or 0.0)
    else:
        raise call.error(f"distribution {distribution!r} is not supported; nearest: 'uniform', 'normal'")
    axes = tuple(_axis(call, i, size) for i, size in enumerate(sizes))
    return NamedTensor(values.to(TORCH_TYPES[dtype]), axes, feature=axes[-1] if axes else None)
