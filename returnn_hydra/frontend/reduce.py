"""Reductions over dims. Padding never counts, unless `use_mask=False`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from returnn_hydra.frontend.ambient import behavior_at_least
from returnn_hydra.frontend.create import num_elements_of_shape
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.elementwise import cast, combine_bc, log, where
from returnn_hydra.frontend.tensor import Tensor, dtype_name, torch_dtype
from returnn_hydra.frontend.tensor_axes import axes_of


def _lowest(dtype: str, sign: int) -> float | int:
    info = torch_dtype(dtype)
    if info.is_floating_point:
        return sign * math.inf
    limits = torch.iinfo(info)
    return limits.max if sign > 0 else limits.min


def _neutral(mode: str, dtype: str) -> Any:
    if mode in ("max", "argmax", "logsumexp"):
        return _lowest(dtype, -1)
    if mode in ("min", "argmin"):
        return _lowest(dtype, 1)
    return {"sum": 0, "any": False, "all": True}[mode]


def _masked(source: Tensor, axes: Sequence[Dim], mode: str) -> Tensor:
    """The source with padding of these axes set to what does not change the result."""
    for dim in axes:
        if dim.need_masking():
            mask = dim.get_mask(device=source.device)
            if dim in mask.dims and not (mask.dims_set - {dim}) <= source.dims_set:
                extra = [d for d in mask.dims if d not in source.dims and d is not dim]
                if any(d.get_dim_value() != 1 for d in extra):
                    source = where(mask, source, _neutral(mode, source.dtype), allow_broadcast_all_sources=True)
                    continue
            source = where(mask, source, _neutral(mode, source.dtype))
    return source


def reduce(
    source: Tensor, *, mode: str, axis: Dim | Sequence[Dim], use_mask: bool = True, distributed: bool = False
) -> Tensor:
    """Reduce one or several dims away.

    Args:
        mode: sum, mean, max, min, logsumexp, logmeanexp, any, all, argmax, argmin.
        use_mask: padding does not count.

    Raises:
        ValueError: unknown mode, or a dim that is not there.
    """
    axes = [axis] if isinstance(axis, Dim) else list(axis)
    axes = [source.dims[n] for n in source.get_axes_from_description(axes)]
    if mode == "mean":
        return _mean(source, axes, use_mask)
    if mode == "logmeanexp":
        count = num_elements_of_shape(axes, use_mask=use_mask, device=source.device)
        total = reduce(source, mode="logsumexp", axis=axes, use_mask=use_mask)
        return total - (math.log(count) if isinstance(count, int) else log(_float_like(count, total)))
    if use_mask:
        source = _masked(source, axes, mode)
    numbers = axes_of(source.dims, axes)
    if mode in ("argmax", "argmin"):
        return _arg_reduce(source, mode, axes, numbers)
    raw = _reduce_raw(source.raw_tensor, mode, numbers)
    return _reduced(source, numbers, raw, mode)


def _reduced(source: Tensor, numbers: Sequence[int], raw: torch.Tensor, mode: str) -> Tensor:
    """The result, without a feature dim, as in RETURNN."""
    out = source._new(_rest(source, numbers), raw, name=f"reduce_{mode}", dtype=dtype_name(raw))
    if numbers:
        out.feature_dim = None
    return out


def _rest(source: Tensor, numbers: Sequence[int]) -> list[Dim]:
    return [d for n, d in enumerate(source.dims) if n not in numbers]


def _reduce_raw(raw: torch.Tensor, mode: str, axes: list[int]) -> torch.Tensor:
    if not axes:
        return raw
    if mode == "sum":
        return raw.sum(dim=axes)
    if mode in ("max", "min"):
        return raw.amax(dim=axes) if mode == "max" else raw.amin(dim=axes)
    if mode == "logsumexp":
        return torch.logsumexp(raw, dim=axes)
    if mode in ("any", "all"):
        for axis in sorted(axes, reverse=True):
            raw = raw.any(dim=axis) if mode == "any" else raw.all(dim=axis)
        return raw
    raise ValueError(
        f"reduce: unknown mode '{mode}', known are sum, mean, max, min, logsumexp, logmeanexp, any, all, argmax, argmin"
    )


def _float_like(count: Tensor, like: Tensor) -> Tensor:
    return count._new(
        count.dims, count.raw_tensor.to(like.raw_tensor.dtype).to(like.raw_tensor.device), dtype=like.dtype
    )


def _mean(source: Tensor, axes: list[Dim], use_mask: bool) -> Tensor:
    if not use_mask or not any(dim.need_masking() for dim in axes):
        numbers = axes_of(source.dims, axes)
        raw = source.raw_tensor.mean(dim=numbers) if numbers else source.raw_tensor
        return _reduced(source, numbers, raw, "mean")
    total = reduce(source, mode="sum", axis=axes)
    count = num_elements_of_shape(axes, device=source.device)
    return combine_bc(total, "truediv", count if isinstance(count, int) else _float_like(count, total))


def _arg_reduce(source: Tensor, mode: str, axes: list[Dim], numbers: list[int]) -> Tensor:
    if len(axes) != 1:
        raise ValueError(f"reduce_{mode}: needs exactly one axis, got {axes}")
    raw = getattr(torch, mode)(source.raw_tensor, dim=numbers[0])
    out = source._new([d for d in source.dims if d is not axes[0]], raw, name=f"reduce_{mode}", dtype="int64")
    out.sparse_dim, out.feature_dim = axes[0], None
    return out


def reduce_sum(
    source: Tensor, *, axis: Dim | Sequence[Dim], use_mask: bool = True, distributed: bool = False
) -> Tensor:
    """Sum."""
    return reduce(source, mode="sum", axis=axis, use_mask=use_mask)


def reduce_max(source: Tensor, *, axis: Dim | Sequence[Dim], use_mask: bool = True) -> Tensor:
    """Maximum."""
    return reduce(source, mode="max", axis=axis, use_mask=use_mask)


def reduce_min(source: Tensor, *, axis: Dim | Sequence[Dim], use_mask: bool = True) -> Tensor:
    """Minimum."""
    return reduce(source, mode="min", axis=axis, use_mask=use_mask)


def reduce_mean(source: Tensor, *, axis: Dim | Sequence[Dim], use_mask: bool = True) -> Tensor:
    """Mean."""
    return reduce(source, mode="mean", axis=axis, use_mask=use_mask)


def reduce_logsumexp(source: Tensor, *, axis: Dim | Sequence[Dim], use_mask: bool = True) -> Tensor:
    """log(sum(exp))."""
    return reduce(source, mode="logsumexp", axis=axis, use_mask=use_mask)


def reduce_logmeanexp(source: Tensor, *, axis: Dim | Sequence[Dim], use_mask: bool = True) -> Tensor:
    """log(mean(exp))."""
    return reduce(source, mode="logmeanexp", axis=axis, use_mask=use_mask)


def reduce_any(source: Tensor, *, axis: Dim | Sequence[Dim], use_mask: bool = True) -> Tensor:
    """True if one is."""
    return reduce(source, mode="any", axis=axis, use_mask=use_mask)


def reduce_all(source: Tensor, *, axis: Dim | Sequence[Dim], use_mask: bool = True) -> Tensor:
    """True if all are."""
    return reduce(source, mode="all", axis=axis, use_mask=use_mask)


def reduce_argmax(source: Tensor, *, axis: Dim | Sequence[Dim], use_mask: bool = True) -> Tensor:
    """Index of the maximum."""
    return reduce(source, mode="argmax", axis=axis, use_mask=use_mask)


def reduce_argmin(source: Tensor, *, axis: Dim | Sequence[Dim], use_mask: bool = True) -> Tensor:
    """Index of the minimum."""
    return reduce(source, mode="argmin", axis=axis, use_mask=use_mask)


def reduce_out(source: Tensor, *, mode: str, num_pieces: int, out_dim: Dim | None = None) -> Tensor:
    """Features in groups of `num_pieces` neighbours, each group reduced to one feature (maxout for mode="max")."""
    from returnn_hydra.frontend.arrays import split_dims

    feature = source.feature_dim
    if feature is None:
        raise ValueError(f"reduce_out: {source} has no feature dim")
    if out_dim is None:
        out_dim = feature.div_left(num_pieces)
    pieces = Dim(num_pieces, name="readout-pieces")
    out = reduce(split_dims(source, axis=feature, dims=[out_dim, pieces]), mode=mode, axis=pieces)
    out.feature_dim = out_dim
    return out


def moments(
    x: Tensor,
    axis: Dim | Sequence[Dim],
    *,
    use_mask: bool = True,
    correction: float | Tensor = 0,
    distributed: bool = False,
    compute_dtype: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean and variance; the variance divides by (number of values - correction).

    Args:
        compute_dtype: dtype of the result; default that of `x`, but float32 for shorter floats from behaviour version
            32 on.
    """
    axes = [axis] if isinstance(axis, Dim) else list(axis)
    is_short = x.dtype in ("float16", "bfloat16")
    if compute_dtype is None and is_short and behavior_at_least(32, "rf_moments_float32"):
        compute_dtype = "float32"
    x = cast(x, compute_dtype or x.dtype)
    # RETURNN masks the mean in any case below behaviour version 34.
    mean = reduce_mean(x, axis=axes, use_mask=use_mask or not behavior_at_least(34, "rf_moments_use_fixed_masking"))
    deviation = combine_bc(x, "squared_difference", mean, dim_order=x.dims)
    variance = reduce_mean(deviation, axis=axes, use_mask=use_mask)
    if isinstance(correction, Tensor) or correction != 0:
        count = num_elements_of_shape(axes, use_mask=use_mask, device=x.device)
        variance = variance * (count / (count - correction))
    return mean, variance


def top_k(
    source: Tensor,
    *,
    axis: Dim | Sequence[Dim],
    k: int | Tensor | None = None,
    k_dim: Dim | None = None,
    sorted: bool = True,
) -> tuple[Tensor, Tensor | tuple[Tensor, ...], Dim]:
    """The k largest values, over one dim or over several at once.

    Returns:
        Values; indices (one tensor for one axis, else one per axis); the dim of the k.
    """
    axes = [axis] if isinstance(axis, Dim) else list(axis)
    if k is None:
        if k_dim is None:
            raise ValueError("top_k: needs k or k_dim")
        k = k_dim.get_dim_value()
    k = int(k.raw_tensor) if isinstance(k, Tensor) else k
    k_dim = k_dim or Dim(k, name="top-k-dim")
    source = _masked(source, axes, "max")
    rest = [d for d in source.dims if d not in axes]
    raw = source.copy_compatible_to_dims_raw([*rest, *axes]).flatten(len(rest))
    if k_dim.dimension is None and not k_dim.is_dim_known():
        k_dim.size = k
    values, indices = torch.topk(raw, k=k, dim=-1, sorted=sorted)
    feature = source.feature_dim
    new_feature = k_dim if feature in axes else feature
    dims = [*rest, k_dim]
    out = Tensor(
        "top_k_values",
        dims=dims,
        dtype=source.dtype,
        sparse_dim=source.sparse_dim,
        feature_dim=new_feature,
        raw_tensor=values,
    )
    parts = []
    for dim in reversed(axes):
        size = dim.get_dim_value()
        parts.append(Tensor("top_k_indices", dims=dims, dtype="int64", sparse_dim=dim, raw_tensor=indices % size))
        indices = indices // size
    parts.reverse()
    return out, parts[0] if isinstance(axis, Dim) else tuple(parts), k_dim


def sort(source: Tensor, *, axis: Dim, descending: bool = False, stable: bool = True) -> tuple[Tensor, Tensor, Dim]:
    """Sorted values, their indices, and the dim of the sorted axis, which is the last one; padding goes to the end."""
    source = _masked(source, [axis], "max" if descending else "min")
    number = len(source.dims) - 1
    source = source.copy_move_axis(source.get_axis_from_description(axis), number)
    out_dim = axis.copy(same_as_self=False, description=f"{axis.name}:sorted")
    raw, indices = torch.sort(source.raw_tensor, dim=number, descending=descending, stable=stable)
    values = source.copy_template_replace_dim_tag(number, out_dim)
    values.raw_tensor = raw
    positions = Tensor("sort_indices", dims=values.dims, dtype="int64", sparse_dim=axis, raw_tensor=indices)
    return values, positions, out_dim
