"""Convolutions.

Legend: N everything that is no spatial axis of the convolution, flattened, S spatial axes, C channels in, D out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from returnn_hydra.network.activations import activate
from returnn_hydra.network.axis import Axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.errors import TooShort, nearest
from returnn_hydra.network.layers.shape import _static
from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.network.registry import register_layer


def spatial_axes(call: LayerCall, x: NamedTensor, given: Any, count: int) -> list[Axis]:
    """The axes to convolve over: the given ones, else the last `count` spatial ones."""
    if given is not None:
        found = [call.axis(x, axis) for axis in given]
        if len(found) != count:
            raise call.error(f"in_spatial_dims = {given!r} for {count} sizes")
        return found
    spatial = call.finder.spatial(x)
    if len(spatial) < count:
        raise call.error(f"needs {count} spatial axes, but the input has {list(x.axes)}; see input_add_feature_dim")
    if len(spatial) > count:
        raise call.error(f"{len(spatial)} spatial axes {spatial} for a filter of {count}; give in_spatial_dims")
    return spatial


def per_axis(call: LayerCall, value: Any, count: int, name: str) -> list[int]:
    """A number for all axes, or one for each."""
    numbers = [value] * count if isinstance(value, int) else list(value)
    if len(numbers) != count:
        raise call.error(f"{name} = {value!r} for {count} spatial axes")
    return numbers


def same_padding(size: int, filter_size: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's: so much that ceil(size / stride) outputs come, the odd one on the right."""
    reach = (filter_size - 1) * dilation + 1
    needed = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return needed // 2, needed - needed // 2


def out_axis(call: LayerCall, old: Axis, filter_size: int, stride: int, dilation: int, padding: str, name: str) -> Axis:
    """The spatial axis behind a convolution or a pooling; the same numbers give the same axis."""
    if padding == "same" and stride == 1:
        return old
    reach = (filter_size - 1) * dilation
    cut = 0 if padding == "same" else reach

    def change(lengths: Tensor) -> Tensor:
        return torch.div((lengths - cut + stride - 1).clamp(min=0), stride, rounding_mode="floor")

    size = max(-(-(old.size - cut) // stride), 0)
    if size == 0 and old.size > 0:
        raise TooShort(f"{call.path}: filter of {filter_size} (dilation {dilation}) over {old}")
    key = ("ceildiv", stride) if padding == "same" else ("conv", cut, stride)
    return old.with_lengths(key, name, size, change)


def prepare_input(
    call: LayerCall, x: NamedTensor, expand: int, add_feature: bool, split_feature: int | None
) -> NamedTensor:
    """`input_add_feature_dim`: the features become a spatial axis; `input_split_feature_dim`: only their front part."""
    if split_feature is not None:
        feature = call.feature(x)
        if feature.size % split_feature:
            raise call.error(f"input_split_feature_dim = {split_feature} does not divide {feature.size}")
        front = _static(call, feature.size // split_feature, "split_feature_dim")
        channels = call.new_feature(split_feature, "split_feature")
        place = x.index(feature)
        raw = x.raw.unflatten(place, (front.size, split_feature))
        x = x.like(raw, [*x.axes[:place], front, channels, *x.axes[place + 1 :]], feature=channels)
    if add_feature:
        channels = call.new_feature(1, "add_feature")
        x = x.like(x.raw.unsqueeze(-1), [*x.axes, channels], feature=channels)
    for i in range(expand):
        feature = call.feature(x)
        place = x.index(feature)
        new = _static(call, 1, f"expand{i}")
        x = x.like(x.raw.unsqueeze(place), [*x.axes[:place], new, *x.axes[place:]], feature=feature)
    return x


def check_padding(call: LayerCall, padding: Any) -> str:
    name = str(padding).lower()
    if name not in ("same", "valid"):
        raise call.error(f"padding {padding!r} is not supported{nearest(name, ('same', 'valid'))}")
    return name


@register_layer("conv", refs=("filter", "bias"))
def conv(
    call: LayerCall,
    *,
    filter_size: Sequence[int],
    padding: str,
    strides: Any = 1,
    dilation_rate: Any = 1,
    groups: int = 1,
    input_expand_dims: int = 0,
    input_add_feature_dim: bool = False,
    input_split_feature_dim: int | None = None,
    in_spatial_dims: Any = None,
    out_spatial_dims: Any = None,
    auto_use_channel_first: Any = None,
    with_bias: bool | None = None,
    activation: Any = None,
    forward_weights_init: Any = "glorot_uniform",
    bias_init: Any = 0.0,
    filter: Any = None,
    filter_perm: Any = None,
    bias: Any = None,
    use_time_mask: bool = False,
    use_cudnn: Any = None,
) -> NamedTensor:
    """Convolution over one, two or three axes.

    Like RETURNN's, it reads the padding of shorter sequences as it is, unless `use_time_mask`.
    """
    del out_spatial_dims, auto_use_channel_first, use_cudnn
    if filter is not None or bias is not None or filter_perm is not None:
        raise call.error("options 'filter' and 'bias' as layers are not supported; nearest: 'reuse_params'")
    count = len(filter_size)
    if count not in (1, 2, 3):
        raise call.error(f"filter_size = {filter_size!r}: one, two or three axes are supported")
    padding = check_padding(call, padding)
    x = prepare_input(call, call.x, input_expand_dims, input_add_feature_dim, input_split_feature_dim)
    spatial = spatial_axes(call, x, in_spatial_dims, count)
    stride = per_axis(call, strides, count, "strides")
    dilation = per_axis(call, dilation_rate, count, "dilation_rate")
    channels = call.feature(x)
    size = call.need_n_out()
    weight = call.param("W", (*filter_size, channels.size // groups, size), forward_weights_init)
    if with_bias is None:
        with_bias = call.run.user.get("behavior_version", 0) >= 10
    bias_values = call.param("bias", (size,), bias_init) if with_bias else None
    new = [
        out_axis(call, a, f, s, d, padding, f"{call.name}:conv:s{i}")
        for i, (a, f, s, d) in enumerate(zip(spatial, filter_size, stride, dilation, strict=True))
    ]
    if use_time_mask:
        x = x.dense(x.masked(spatial, 0.0))
    rows, other = x.rows(channels, *spatial)  # (N, C, *S)
    if padding == "same":
        sides = [
            same_padding(a.size, f, s, d) for a, f, s, d in zip(spatial, filter_size, stride, dilation, strict=True)
        ]
        rows = F.pad(rows, [size for pair in reversed(sides) for size in pair])
    functions = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
    kernel = weight.permute(count + 1, count, *range(count))
    raw = functions[count](rows, kernel, bias_values, stride, 0, dilation, groups)  # (N, D, *S')
    return _conv_output(call, x, raw, other, spatial, new, size, activation)


def _conv_output(
    call: LayerCall,
    x: NamedTensor,
    raw: Tensor,
    other: tuple[Axis, ...],
    spatial: list[Axis],
    new: list[Axis],
    size: int,
    activation: Any,
) -> NamedTensor:
    """(N, D, *S') with names: other axes, the spatial ones, the features."""
    feature = call.new_feature(size)
    raw = raw.movedim(1, -1).reshape(*[a.size for a in (*other, *new)], size)
    time = next((n for a, n in zip(spatial, new, strict=True) if a is call.finder.time(x)), x.time)
    result = x.dense(raw, [*other, *new, feature], feature=feature, time=time)
    return activate(result, activation, call.path)


@register_layer("transposed_conv", refs=("filter", "bias"))
def transposed_conv(
    call: LayerCall,
    *,
    filter_size: Sequence[int],
    strides: Any = None,
    padding: str = "same",
    remove_padding: Any = 0,
    output_padding: Any = None,
    in_spatial_dims: Any = None,
    out_spatial_dims: Any = None,
    with_bias: bool = True,
    activation: Any = None,
    forward_weights_init: Any = "glorot_uniform",
    bias_init: Any = 0.0,
    filter: Any = None,
    filter_perm: Any = None,
    bias: Any = None,
    use_time_mask: bool = False,
) -> NamedTensor:
    """Upsampling convolution: the transpose of a strided one; default stride: the filter's size."""
    del out_spatial_dims, filter_perm
    if filter is not None or bias is not None:
        raise call.error("options 'filter' and 'bias' as layers are not supported; nearest: 'reuse_params'")
    if output_padding is not None:
        raise call.error("option 'output_padding' is not supported; nearest: 'remove_padding'")
    count = len(filter_size)
    if count not in (1, 2):
        raise call.error(f"filter_size = {filter_size!r}: one or two axes are supported")
    padding = check_padding(call, padding)
    x = call.x
    spatial = spatial_axes(call, x, in_spatial_dims, count)
    stride = per_axis(call, strides if strides is not None else list(filter_size), count, "strides")
    remove = per_axis(call, remove_padding, count, "remove_padding")
    channels, size = call.feature(x), call.need_n_out()
    shape = (*filter_size, *([1] if count == 1 else []), size, channels.size)
    weight = call.param("W_native_transposed_conv", shape, forward_weights_init)
    bias_values = call.param("bias", (size,), bias_init) if with_bias else None
    if use_time_mask:
        x = x.dense(x.masked(spatial, 0.0))
    rows, other = x.rows(channels, *spatial)
    kernel = weight.squeeze(1) if count == 1 else weight
    kernel = kernel.permute(count + 1, count, *range(count))  # (C, D, *S)
    functions = {1: F.conv_transpose1d, 2: F.conv_transpose2d}
    raw = functions[count](rows, kernel, None, stride)
    new = []
    for i, (axis, f, s, r) in enumerate(zip(spatial, filter_size, stride, remove, strict=True)):
        raw, axis_out = _cropped(call, raw, axis, i, f, s, r, padding)
        new.append(axis_out)
    if bias_values is not None:
        raw = raw + bias_values.view(1, -1, *[1] * count)
    return _conv_output(call, x, raw, other, spatial, new, size, activation)


def _cropped(
    call: LayerCall, raw: Tensor, axis: Axis, i: int, filter_size: int, stride: int, remove: int, padding: str
) -> tuple[Tensor, Axis]:
    """Cut the full transposed convolution to the length that TensorFlow gives it."""
    extra = 0 if padding == "same" else max(filter_size - stride, 0)
    total = axis.size * stride + extra
    left = max(filter_size - stride, 0) // 2 if padding == "same" else 0
    dim = i + 2
    missing = left + total - raw.shape[dim]
    if missing > 0:
        shape = list(raw.shape)
        shape[dim] = missing
        raw = torch.cat([raw, raw.new_zeros(shape)], dim)
    raw = raw.narrow(dim, left + remove, total - 2 * remove)
    key = ("conv_transposed", stride, extra - 2 * remove) if extra - 2 * remove else ("times", stride)
    change = functools.partial(_longer, stride=stride, extra=extra - 2 * remove)
    return raw, axis.with_lengths(key, f"{call.name}:conv:s{i}", raw.shape[dim], change)


def _longer(lengths: Tensor, stride: int, extra: int) -> Tensor:
    return (lengths * stride + extra).clamp(min=0)
