"""Normalising layers."""

from __future__ import annotations

from typing import Any

import torch

from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.errors import nearest
from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.network.norms import batch_norm as normalize_batch
from returnn_hydra.network.registry import register_layer


@register_layer("batch_norm")
def batch_norm(
    call: LayerCall,
    *,
    use_shift: bool = True,
    use_std: bool = True,
    use_sample: float = 0.0,
    force_sample: bool = False,
    momentum: float | None = None,
    epsilon: float = 1e-3,
    update_sample_only_in_training: bool | None = None,
    delay_sample_update: bool | None = None,
    param_version: int | None = None,
    gamma_init: Any = 1.0,
    beta_init: Any = 0.0,
    masked_time: bool = True,
) -> NamedTensor:
    """See `norms.batch_norm`."""
    options = {key: value for key, value in locals().items() if key != "call"}
    return normalize_batch(call, call.x, **options)


@register_layer("layer_norm", framewise=True)
def layer_norm(call: LayerCall, *, epsilon: float = 1e-6) -> NamedTensor:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over the features."""
    x = call.x
    feature = call.feature(x)
    scale = call.param("scale", (feature.size,), 1.0)
    bias = call.param("bias", (feature.size,), 0.0)
    moved = x.moved_last(feature)
    raw = torch.nn.functional.layer_norm(moved.raw, (feature.size,), scale, bias, epsilon)
    return moved.dense(raw).ordered(x.axes)


@register_layer("norm")
def norm(
    call: LayerCall,
    *,
    axis: Any = None,
    axes: Any = None,
    param_shape: Any = None,
    scale: bool = True,
    bias: bool = True,
    epsilon: float = 1e-6,
) -> NamedTensor:
    """The same over any axes, padding left out; scale and bias have the size of the features."""
    x = call.x
    over = call.axes(x, axis if axis is not None else axes)
    if not over:
        raise call.error(f"axis {axis!r} means no axis of {list(x.axes)}")
    if param_shape not in (None, "F"):
        raise call.error(f"param_shape = {param_shape!r} is not supported; nearest: 'F'")
    dims = [x.index(a) for a in over]
    dynamic = [a for a in over if a.is_dynamic]
    weight = x.dense(torch.ones_like(x.raw)).masked(dynamic, 0.0)
    count = weight.sum(dims, keepdim=True).clamp(min=1.0)
    mean = (x.raw * weight).sum(dims, keepdim=True) / count
    variance = ((x.raw - mean).square() * weight).sum(dims, keepdim=True) / count
    raw = (x.raw - mean) * torch.rsqrt(variance + epsilon)
    feature = call.feature(x)
    shape = [a.size if a is feature else 1 for a in x.axes]
    if scale:
        raw = raw * call.param("scale", (feature.size,), 1.0).view(shape)
    if bias:
        raw = raw + call.param("bias", (feature.size,), 0.0).view(shape)
    return x.dense(raw)


@register_layer("math_norm")
def math_norm(
    call: LayerCall, *, p: float = 2, axes: Any = None, axis: Any = None, keep_dims: bool = False
) -> NamedTensor:
    """The p-norm over some axes, padding left out."""
    x = call.x
    over = call.axes(x, axis if axis is not None else axes)
    values = x.dense(x.masked(over, 0.0)).raw.abs()
    dims = [x.index(a) for a in over]
    powers = {1: lambda v: v.sum(dims), 2: lambda v: v.square().sum(dims).sqrt()}
    if p not in powers:
        raise call.error(f"p = {p!r} is not supported{nearest(p, ('1', '2'))}")
    if keep_dims:
        raise call.error("option 'keep_dims' is not supported; nearest: class 'expand_dims' behind it")
    return x.dense(powers[int(p)](values), [a for a in x.axes if a not in over])
