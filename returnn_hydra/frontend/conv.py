"""Convolutions and pooling over one to three spatial dims. Filters are (out, in / groups, kernel...), as in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from returnn_hydra.frontend.ambient import behavior_at_least
from returnn_hydra.frontend.arrays import matched_dim
from returnn_hydra.frontend.dim import Dim, dim_match_priority_when_needed
from returnn_hydra.frontend.init import Glorot
from returnn_hydra.frontend.module import Module
from returnn_hydra.frontend.parameter import Parameter
from returnn_hydra.frontend.tensor import Tensor, dtype_name

Padding = str | int | Sequence[int]


def _as_list(value: Any, count: int, default: int = 1) -> list[Any]:
    if value is None:
        value = default
    if isinstance(value, (list, tuple)):
        if len(value) != count:
            raise ValueError(f"expected {count} values, one per spatial dim, got {list(value)}")
        return list(value)
    return [value] * count


def _size(value: Any) -> int:
    return value.get_dim_value() if isinstance(value, Dim) else int(value)


def calc_conv_out_length(
    in_length: Any,
    *,
    filter_size: Any,
    stride: int,
    padding: str | int,
    dilation_rate: int = 1,
    name: str | None = None,
) -> Any:
    """Length after a convolution: "same" keeps ceil(n / stride), "valid" ceil((n - (k - 1) dilation) / stride)."""
    if isinstance(in_length, Dim):
        return _out_dim(in_length, _size(filter_size), stride, padding, dilation_rate)
    if padding != "same" or isinstance(padding, int):
        extra = 2 * padding if isinstance(padding, int) else 0
        in_length = in_length + extra - (_size(filter_size) - 1) * dilation_rate
    return -(-in_length // stride)


def _out_dim(dim: Dim, kernel: int, stride: int, padding: str | int, dilation: int) -> Dim:
    span = (kernel - 1) * dilation
    if isinstance(padding, int):
        span -= 2 * padding
    elif padding.lower() == "same":
        span = 0
    elif padding.lower() != "valid":
        raise ValueError(f"padding '{padding}' is none of 'same', 'valid' or an int")
    if span:
        dim = dim.sub_right(span) if span > 0 else dim + (-span)
    return dim.ceildiv_right(stride)


def make_conv_out_spatial_dims(
    in_spatial_dims: Sequence[Dim],
    *,
    filter_size: Any,
    padding: Padding,
    strides: Any = 1,
    dilation_rate: Any = 1,
    description_prefix: str | None = None,
) -> list[Dim]:
    """The spatial dims after a convolution or pooling."""
    count = len(in_spatial_dims)
    options = [_as_list(v, count) for v in (filter_size, strides, padding, dilation_rate)]
    return [
        _out_dim(dim, _size(kernel), stride, pad, dilation)
        for dim, kernel, stride, pad, dilation in zip(in_spatial_dims, *options, strict=True)
    ]


def _paddings(
    sizes: Sequence[int], kernels: list[int], strides: list[int], padding: list[Any], dilations: list[int]
) -> list[tuple[int, int]]:
    """(left, right) for every spatial axis.

    "same" pads (k - 1) * dilation in total; below behaviour version 24 with a stride only as much as the padded
    length needs.
    """
    result = []
    for size, kernel, stride, pad, dilation in zip(sizes, kernels, strides, padding, dilations, strict=True):
        if isinstance(pad, int):
            result.append((pad, pad))
        elif pad.lower() == "valid":
            result.append((0, 0))
        else:
            total = (kernel - 1) * dilation
            if stride > 1 and not behavior_at_least(24, "rf_use_consistent_same_padding"):
                total = max((-(-size // stride) - 1) * stride + total + 1 - size, 0)
            result.append((total // 2, total - total // 2))
    return result


def _masked_input(source: Tensor, dims: Sequence[Dim], value: Any, use_mask: bool | None) -> Tensor:
    """Padding of the spatial dims set to `value`: by default from behaviour version 23 on."""
    if behavior_at_least(23, "rf_use_mask") if use_mask is None else use_mask:
        return source.copy_masked(value, dims=[d for d in dims if d.need_masking()])
    return source


def _pad_raw(raw: torch.Tensor, paddings: list[tuple[int, int]], value: float) -> torch.Tensor:
    flat = [p for pair in reversed(paddings) for p in pair]
    return torch.nn.functional.pad(raw, flat, value=value) if any(flat) else raw


def conv(
    source: Tensor,
    *,
    in_dim: Dim,
    out_dim: Dim,
    in_spatial_dims: Sequence[Dim],
    out_spatial_dims: Sequence[Dim] | None = None,
    filter: Tensor,
    filter_size: Sequence[Dim],
    padding: Padding,
    strides: Any = None,
    dilation_rate: Any = None,
    groups: int | None = None,
    bias: Tensor | None = None,
    use_mask: bool | None = None,
) -> tuple[Tensor, Sequence[Dim]]:
    """Convolution; all dims but `in_dim` and the spatial ones are batch dims."""
    count = len(in_spatial_dims)
    kernels = [d.get_dim_value() for d in filter_size]
    step, pads, dilation = _as_list(strides, count), _as_list(padding, count), _as_list(dilation_rate, count)
    source = _masked_input(source, in_spatial_dims, 0, use_mask)
    batch = [d for d in source.dims if d != in_dim and d not in in_spatial_dims]
    raw = source.copy_compatible_to_dims_raw([*batch, in_dim, *in_spatial_dims])
    shape = raw.shape[: len(batch)]
    raw = raw.reshape(-1, *raw.shape[len(batch) :])
    raw = _pad_raw(raw, _paddings(raw.shape[2:], kernels, step, pads, dilation), 0.0)
    function = getattr(torch.nn.functional, f"conv{count}d")
    short = [(k - 1) * d + 1 - n for n, k, d in zip(raw.shape[2:], kernels, dilation, strict=True)]
    if max(short) > 0:
        raw = _pad_raw(raw, [(0, max(s, 0)) for s in short], 0.0)
    result = function(
        raw,
        _filter_raw(filter, out_dim, filter_size),
        None if bias is None else bias.raw_tensor,
        stride=step,
        dilation=dilation,
        groups=groups or 1,
    )
    new = make_conv_out_spatial_dims(
        in_spatial_dims, filter_size=kernels, padding=padding, strides=step, dilation_rate=dilation
    )
    dims = [matched_dim(dim, out_spatial_dims[n] if out_spatial_dims else None) for n, dim in enumerate(new)]
    result = _cut(result, dims).reshape(*shape, result.shape[1], *[d.get_dim_value() for d in dims])
    out = Tensor(
        "conv", dims=[*batch, out_dim, *dims], dtype=dtype_name(result), feature_dim=out_dim, raw_tensor=result
    )
    return out, dims


def _filter_raw(filter: Tensor, out_dim: Dim, filter_size: Sequence[Dim]) -> torch.Tensor:
    """(out, in / groups, kernel...), whatever the order of the filter's dims."""
    channels = filter.remaining_dims(filter_size)
    if len(channels) == 2 and channels[0] != out_dim and channels[1] == out_dim:
        channels.reverse()
    return filter.copy_compatible_to_dims_raw([*channels, *filter_size])


def _cut(raw: torch.Tensor, dims: Sequence[Dim]) -> torch.Tensor:
    for axis, dim in enumerate(dims, 2):
        raw = raw.narrow(axis, 0, dim.get_dim_value())
    return raw


class _ConvOrTransposed(Module):
    """What convolutions share."""

    nd: int

    def __init__(self, in_dim: Dim, out_dim: Dim, filter_size: Any, padding: Padding, with_bias: bool) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.out_dim = out_dim
        sizes = _as_list(filter_size, self.nd)
        self.filter_size = [s if isinstance(s, Dim) else Dim(s, name=f"filter-dim{n}") for n, s in enumerate(sizes)]
        self.padding = padding
        self.with_bias = with_bias

    def _make_parameters(self, filter_dims: Sequence[Dim]) -> None:
        """The filter first: the order of the attributes is that of the parameters."""
        self.filter = Parameter(filter_dims, initial=Glorot())
        self.bias = Parameter([self.out_dim], initial=0.0) if self.with_bias else None

    def _spatial(self, options: dict[str, Any], prefix: str) -> list[Dim] | None:
        """in_spatial_dim or in_spatial_dims, whichever was given."""
        one, several = options.pop(f"{prefix}_spatial_dim", None), options.pop(f"{prefix}_spatial_dims", None)
        if one is not None:
            return [one]
        return None if several is None else list(several)


class _Conv(_ConvOrTransposed):
    """Convolution with a learned filter. Parameters: filter, bias."""

    def __init__(
        self,
        in_dim: Dim,
        out_dim: Dim,
        filter_size: Any,
        *,
        padding: Padding,
        strides: Any = None,
        dilation_rate: Any = None,
        groups: int | None = None,
        with_bias: bool = True,
    ) -> None:
        super().__init__(in_dim, out_dim, filter_size, padding, with_bias)
        self.strides = strides
        self.dilation_rate = dilation_rate
        self.groups = groups
        inner = in_dim if groups in (None, 1) else in_dim // groups
        inner = dim_match_priority_when_needed(inner, out_dim)
        self._make_parameters([out_dim, inner, *self.filter_size])

    def _convolve(self, source: Tensor, ins: Sequence[Dim], outs: Sequence[Dim] | None) -> tuple[Tensor, Sequence[Dim]]:
        return conv(
            source,
            in_dim=self.in_dim,
            out_dim=self.out_dim,
            in_spatial_dims=ins,
            out_spatial_dims=outs,
            filter=self.filter,
            filter_size=self.filter_size,
            padding=self.padding,
            strides=self.strides,
            dilation_rate=self.dilation_rate,
            groups=self.groups,
            bias=self.bias,
        )


class Conv1d(_Conv):
    """Over one spatial dim; returns (output, its spatial dim)."""

    nd = 1

    def __call__(
        self, source: Tensor, *, in_spatial_dim: Dim, out_spatial_dim: Dim | None = None
    ) -> tuple[Tensor, Dim]:
        out, dims = self._convolve(source, [in_spatial_dim], None if out_spatial_dim is None else [out_spatial_dim])
        return out, dims[0]


class _ConvNd(_Conv):
    def __call__(
        self, source: Tensor, *, in_spatial_dims: Sequence[Dim], out_spatial_dims: Sequence[Dim] | None = None
    ) -> tuple[Tensor, Sequence[Dim]]:
        return self._convolve(source, in_spatial_dims, out_spatial_dims)


class Conv2d(_ConvNd):
    """Over two spatial dims; returns (output, its spatial dims)."""

    nd = 2


class Conv3d(_ConvNd):
    """Over three spatial dims; returns (output, its spatial dims)."""

    nd = 3


def calc_transposed_conv_out_length(
    in_length: Any,
    *,
    filter_size: Any,
    padding: str | int,
    output_padding: int | None = None,
    stride: int | None = None,
    dilation_rate: int = 1,
    name: str | None = None,
) -> Any:
    """Length after a transposed convolution: "valid" (n - 1) stride + k, "same" n stride (with output_padding more)."""
    kernel, stride = _size(filter_size), stride or 1
    extra = output_padding or 0
    if padding == "same":
        span = extra
    else:
        removed = 2 * padding if isinstance(padding, int) else 0
        span = (kernel - 1) * dilation_rate + 1 - stride + extra - removed
    if isinstance(in_length, Dim):
        out = in_length * stride
        return out + span if span > 0 else out.sub_right(-span) if span else out
    return in_length * stride + span


def make_transposed_conv_out_spatial_dims(
    in_spatial_dims: Sequence[Dim],
    *,
    filter_size: Any,
    padding: Padding,
    output_padding: Any = None,
    strides: Any = None,
    dilation_rate: Any = 1,
    description_prefix: str | None = None,
) -> list[Dim]:
    """The spatial dims after a transposed convolution."""
    count = len(in_spatial_dims)
    kernels = [_size(k) for k in _as_list(filter_size, count)]
    steps = kernels if strides is None else _as_list(strides, count)
    pads = _as_list(padding, count)
    extras = [None] * count if output_padding is None else _as_list(output_padding, count)
    return [
        calc_transposed_conv_out_length(d, filter_size=k, stride=s, padding=p, output_padding=e)
        for d, k, s, p, e in zip(in_spatial_dims, kernels, steps, pads, extras, strict=True)
    ]


def transposed_conv(
    source: Tensor,
    *,
    in_dim: Dim,
    out_dim: Dim,
    in_spatial_dims: Sequence[Dim],
    out_spatial_dims: Sequence[Dim] | None = None,
    filter: Tensor,
    filter_size: Sequence[Dim],
    padding: str,
    remove_padding: Any = 0,
    output_padding: Any = None,
    strides: Any = None,
    bias: Tensor | None = None,
    use_mask: bool | None = None,
) -> tuple[Tensor, Sequence[Dim]]:
    """Transposed convolution (filter (in, out, kernel...)); stride by default the kernel size.

    Args:
        remove_padding: frames cut off at both ends of the result.
    """
    count = len(in_spatial_dims)
    kernels = [d.get_dim_value() for d in filter_size]
    steps = kernels if strides is None else _as_list(strides, count)
    source = _masked_input(source, in_spatial_dims, 0, use_mask)
    batch = [d for d in source.dims if d != in_dim and d not in in_spatial_dims]
    raw = source.copy_compatible_to_dims_raw([*batch, in_dim, *in_spatial_dims])
    shape = raw.shape[: len(batch)]
    raw = raw.reshape(-1, *raw.shape[len(batch) :])
    function = getattr(torch.nn.functional, f"conv_transpose{count}d")
    result = function(raw, filter.raw_tensor, None if bias is None else bias.raw_tensor, stride=steps)
    new = make_transposed_conv_out_spatial_dims(
        in_spatial_dims, filter_size=kernels, padding=padding, output_padding=output_padding, strides=steps
    )
    dims = []
    for axis, (dim, kernel, step, cut) in enumerate(
        zip(new, kernels, steps, _as_list(remove_padding, count), strict=True)
    ):
        left = max(kernel - step, 0) // 2 if padding == "same" else 0
        dim = dim.sub_right(2 * cut) if cut else dim
        dims.append(matched_dim(dim, out_spatial_dims[axis] if out_spatial_dims else None))
        size = dim.get_dim_value()
        missing = left + cut + size - result.shape[axis + 2]
        if missing > 0:
            result = _pad_raw(result, [(0, missing if n == axis else 0) for n in range(count)], 0.0)
        result = result.narrow(axis + 2, left + cut, size)
    result = result.reshape(*shape, *result.shape[1:])
    out = Tensor(
        "conv", dims=[*batch, out_dim, *dims], dtype=dtype_name(result), feature_dim=out_dim, raw_tensor=result
    )
    return out, dims


class _TransposedConv(_ConvOrTransposed):
    """Transposed convolution with a learned filter. Parameters: filter (in, out, kernel...), bias."""

    def __init__(
        self,
        in_dim: Dim,
        out_dim: Dim,
        filter_size: Any,
        *,
        padding: str,
        remove_padding: Any = 0,
        output_padding: Any = None,
        strides: Any = None,
        with_bias: bool = True,
    ) -> None:
        super().__init__(in_dim, out_dim, filter_size, padding, with_bias)
        self.remove_padding = remove_padding
        self.output_padding = output_padding
        self.strides = strides
        self._make_parameters([dim_match_priority_when_needed(in_dim, out_dim), out_dim, *self.filter_size])

    def _convolve(self, source: Tensor, ins: Sequence[Dim], outs: Sequence[Dim] | None) -> tuple[Tensor, Sequence[Dim]]:
        assert isinstance(self.padding, str)
        return transposed_conv(
            source,
            in_dim=self.in_dim,
            out_dim=self.out_dim,
            in_spatial_dims=ins,
            out_spatial_dims=outs,
            filter=self.filter,
            filter_size=self.filter_size,
            padding=self.padding,
            remove_padding=self.remove_padding,
            output_padding=self.output_padding,
            strides=self.strides,
            bias=self.bias,
        )


class TransposedConv1d(_TransposedConv):
    """Over one spatial dim; returns (output, its spatial dim)."""

    nd = 1

    def __call__(
        self, source: Tensor, *, in_spatial_dim: Dim, out_spatial_dim: Dim | None = None
    ) -> tuple[Tensor, Dim]:
        out, dims = self._convolve(source, [in_spatial_dim], None if out_spatial_dim is None else [out_spatial_dim])
        return out, dims[0]


class _TransposedConvNd(_TransposedConv):
    def __call__(
        self, source: Tensor, *, in_spatial_dims: Sequence[Dim], out_spatial_dims: Sequence[Dim] | None = None
    ) -> tuple[Tensor, Sequence[Dim]]:
        return self._convolve(source, in_spatial_dims, out_spatial_dims)


class TransposedConv2d(_TransposedConvNd):
    """Over two spatial dims."""

    nd = 2


class TransposedConv3d(_TransposedConvNd):
    """Over three spatial dims."""

    nd = 3


def pool(
    source: Tensor,
    *,
    nd: int | None = None,
    mode: str,
    pool_size: Any,
    padding: Padding = "valid",
    dilation_rate: Any = 1,
    strides: Any = None,
    in_spatial_dims: Dim | Sequence[Dim],
    out_spatial_dims: Dim | Sequence[Dim] | None = None,
    use_mask: bool | None = None,
) -> tuple[Tensor, Any]:
    """Maximum ("max") or mean ("avg") of windows; frames outside (padding of "same") do not count.

    Args:
        strides: default: the pool size.
    """
    single = isinstance(in_spatial_dims, Dim)
    ins = [in_spatial_dims] if isinstance(in_spatial_dims, Dim) else list(in_spatial_dims)
    given = [out_spatial_dims] if isinstance(out_spatial_dims, Dim) else out_spatial_dims
    count = len(ins)
    sizes = _as_list(pool_size, count)
    steps = sizes if strides is None else _as_list(strides, count)
    pads, dilations = _as_list(padding, count), _as_list(dilation_rate, count)
    if mode not in ("max", "avg"):
        raise ValueError(f"pool: mode '{mode}' is none of max, avg")
    masked = behavior_at_least(23, "rf_use_mask") if use_mask is None else use_mask
    batch = [d for d in source.dims if d not in ins]
    pooled = _pool_raw(source, batch, ins, mode, sizes, steps, pads, dilations, masked)
    new = make_conv_out_spatial_dims(ins, filter_size=sizes, padding=padding, strides=steps, dilation_rate=dilations)
    dims = [matched_dim(dim, given[n] if given else None) for n, dim in enumerate(new)]
    raw = _cut(pooled, dims)
    raw = raw.reshape(*[source.raw_tensor.shape[source.dims.index(d)] for d in batch], *raw.shape[2:])
    out = source._new([*batch, *dims], raw, name="pool", dtype=dtype_name(raw))
    if masked:  # no -inf of windows that hold only padding
        out = out.copy_masked(0, dims=[d for d, before in zip(dims, ins, strict=True) if before.need_masking()])
        out = out.copy_transpose([*batch, *dims])
    return out, dims[0] if single else dims


def _pool_raw(
    source: Tensor, batch: list[Dim], ins: list[Dim], mode: str, sizes: list[int], steps: list[int], pads: list[Any],
    dilations: list[int], masked: bool,
) -> torch.Tensor:  # fmt: skip
    """(N, 1, spatial...)."""
    lowest = float("-inf") if source.raw_tensor.is_floating_point() else torch.iinfo(source.raw_tensor.dtype).min
    if masked and any(d.need_masking() for d in ins):
        source = source.copy_masked(lowest if mode == "max" else 0, dims=[d for d in ins if d.need_masking()])
    raw = source.copy_compatible_to_dims_raw([*batch, *ins])
    spatial = raw.shape[len(batch) :]
    raw = raw.reshape(-1, 1, *spatial)
    paddings = _paddings(spatial, sizes, steps, pads, dilations)
    function = getattr(torch.nn.functional, f"{mode}_pool{len(ins)}d")
    if mode == "max":
        return function(_pad_raw(raw, paddings, lowest), sizes, stride=steps, dilation=dilations)
    if any(d != 1 for d in dilations):
        raise ValueError("pool: mode 'avg' has no dilation")
    inside = raw.new_ones([1, 1, *spatial])
    if any(left != right for left, right in paddings) and behavior_at_least(24, "rf_use_consistent_same_padding"):
        # Measured: from that version on uneven padding counts as zeros.
        return function(_pad_raw(raw, paddings, 0.0), sizes, stride=steps)
    total, share = (function(_pad_raw(part, paddings, 0.0), sizes, stride=steps) for part in (raw, inside))
    return total / share.clamp(min=1e-30)


def max_pool(source: Tensor, **options: Any) -> tuple[Tensor, Any]:
    """Maximum of windows."""
    return pool(source, mode="max", **options)


def _pool1d(mode: str | None) -> Callable[..., tuple[Tensor, Dim]]:
    def apply(
        source: Tensor, *, in_spatial_dim: Dim, out_spatial_dim: Dim | None = None, **options: Any
    ) -> tuple[Tensor, Dim]:
        if mode is not None:
            options["mode"] = mode
        return pool(source, in_spatial_dims=in_spatial_dim, out_spatial_dims=out_spatial_dim, **options)

    apply.__name__ = apply.__qualname__ = "pool1d" if mode is None else f"{mode}_pool1d"
    apply.__doc__ = "Pooling over one spatial dim; returns (output, its spatial dim)."
    return apply


pool1d = _pool1d(None)
max_pool1d = _pool1d("max")


def pool2d(source: Tensor, **options: Any) -> tuple[Tensor, Any]:
    """Pooling over two spatial dims."""
    return pool(source, nd=2, **options)


def pool3d(source: Tensor, **options: Any) -> tuple[Tensor, Any]:
    """Pooling over three spatial dims."""
    return pool(source, nd=3, **options)
