"""Normalisation over features, groups, the batch; running means."""

from __future__ import annotations

from collections.abc import Sequence

from returnn_hydra.frontend.arrays import split_dims
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.elementwise import cast, combine_bc, keep_dtype, rsqrt, square
from returnn_hydra.frontend.module import Module
from returnn_hydra.frontend.parameter import Parameter
from returnn_hydra.frontend.reduce import moments, reduce_mean
from returnn_hydra.frontend.run_ctx import get_run_ctx
from returnn_hydra.frontend.tensor import Tensor


def normalize(a: Tensor, *, axis: Dim | Sequence[Dim], epsilon: float = 1e-6) -> Tensor:
    """(a - mean) / sqrt(variance + epsilon) over these dims, padding not counted."""
    mean, variance = moments(a, axis)
    centred = combine_bc(a, "sub", mean, dim_order=a.dims)
    return combine_bc(centred, "mul", rsqrt(variance + epsilon), dim_order=a.dims)


class Normalize(Module):
    """normalize with a learned scale and bias over `param_dims`."""

    def __init__(
        self, *, param_dims: Dim | Sequence[Dim], epsilon: float = 1e-6, scale: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        dims = _dims(param_dims)
        self.epsilon = epsilon
        self.scale = Parameter(dims, initial=1.0) if scale else None
        self.bias = Parameter(dims, initial=0.0) if bias else None

    def __call__(self, a: Tensor, *, axis: Dim | Sequence[Dim]) -> Tensor:
        return _affine(normalize(a, axis=axis, epsilon=self.epsilon), self.scale, self.bias)


def _dims(dims: Dim | Sequence[Dim]) -> list[Dim]:
    return [dims] if isinstance(dims, Dim) else list(dims)


def _affine(x: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    if scale is not None:
        x = x * scale
    return x if bias is None else x + bias


class LayerNorm(Module):
    """Normalises every frame over its features. Parameters: scale, bias."""

    def __init__(self, in_dim: Dim | Sequence[Dim], *, eps: float = 1e-6, with_bias: bool = True) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.eps = eps
        self.scale = Parameter(_dims(in_dim), initial=1.0)
        self.bias = Parameter(_dims(in_dim), initial=0.0) if with_bias else None

    def __call__(self, x: Tensor) -> Tensor:
        out = normalize(x, axis=self.in_dim, epsilon=self.eps) * self.scale
        if self.bias is not None:
            out = out + self.bias
        return keep_dtype(out, x.dtype)


class RMSNorm(Module):
    """x / sqrt(mean of squares + eps), times scale (Zhang & Sennrich 2019)."""

    def __init__(self, in_dim: Dim | Sequence[Dim], *, eps: float = 1e-6, with_bias: bool = False) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.eps = eps
        self.scale = Parameter(_dims(in_dim), initial=1.0)
        self.bias = Parameter(_dims(in_dim), initial=0.0) if with_bias else None

    def __call__(self, x: Tensor) -> Tensor:
        power = reduce_mean(square(x), axis=self.in_dim)
        out = x * rsqrt(power + self.eps) * self.scale
        if self.bias is not None:
            out = out + self.bias
        return keep_dtype(out, x.dtype)


class GroupNorm(Module):
    """Normalises groups of features of every frame."""

    def __init__(self, in_dim: Dim | Sequence[Dim], *, num_groups: int | Dim, eps: float = 1e-6) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.num_groups = num_groups if isinstance(num_groups, Dim) else Dim(num_groups, name="groups")
        self.eps = eps
        self.scale = Parameter(_dims(in_dim), initial=1.0)
        self.bias = Parameter(_dims(in_dim), initial=0.0)

    def __call__(self, x: Tensor) -> Tensor:
        return keep_dtype(_affine(self._normalized(x, []), self.scale, self.bias), x.dtype)

    def _normalized(self, x: Tensor, extra: list[Dim]) -> Tensor:
        dims = _dims(self.in_dim)
        axis = dims[-1]
        within = axis.div_left(self.num_groups)
        grouped = split_dims(x, axis=axis, dims=[self.num_groups, within])
        out = normalize(grouped, axis=[within, *dims[:-1], *extra], epsilon=self.eps)
        number = x.get_axis_from_description(axis)
        order = [d for d in x.dims if d != axis]
        order[number:number] = [self.num_groups, within]
        raw = out.copy_compatible_to_dims_raw(order).flatten(number, number + 1)
        result = x._new(x.dims, raw, dtype=out.dtype)
        result.feature_dim = None
        return result


class GroupNormSpatial(GroupNorm):
    """Normalises groups of features over all frames of a sequence, too."""

    def __call__(self, x: Tensor, *, spatial_dims: Dim | Sequence[Dim] | None = None) -> Tensor:
        if spatial_dims is None:
            given = [d for d in x.dims if d not in _dims(self.in_dim) and not d.is_batch_dim()]
            spatial_dims = [d for d in given if d.is_dynamic()] or given[-1:]
        return keep_dtype(_affine(self._normalized(x, _dims(spatial_dims)), self.scale, self.bias), x.dtype)


class BatchNorm(Module):
    """Normalises every feature over all frames of the batch; running statistics outside of training.

    Parameters: running_mean, running_variance (auxiliary), gamma, beta.

    Args:
        momentum: weight of the batch in the running statistics.
        use_mask: padding does not count; None: as True.
    """

    def __init__(
        self,
        in_dim: Dim,
        *,
        affine: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-3,
        track_running_stats: bool = True,
        use_mask: bool | None = None,
        distributed: bool | None = None,
    ) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.use_mask = use_mask is not False
        self.momentum = momentum
        self.eps = eps
        self.running_mean = Parameter([in_dim], auxiliary=True, initial=0.0) if track_running_stats else None
        self.running_variance = Parameter([in_dim], auxiliary=True, initial=1.0) if track_running_stats else None
        self.gamma = Parameter([in_dim], initial=1.0) if affine else None
        self.beta = Parameter([in_dim], initial=0.0) if affine else None

    def __call__(self, source: Tensor) -> Tensor:
        if self.in_dim not in source.dims:
            raise ValueError(f"BatchNorm: {source} has no dim {self.in_dim}")
        train = bool(get_run_ctx().train_flag)
        if not train and self.running_mean is not None:
            assert self.running_variance is not None
            mean: Tensor = self.running_mean
            variance: Tensor = self.running_variance
        else:
            axes = [d for d in source.dims if d != self.in_dim]
            mean = reduce_mean(source, axis=axes, use_mask=self.use_mask)
            deviation = combine_bc(source, "squared_difference", mean, dim_order=source.dims)
            variance = reduce_mean(deviation, axis=axes, use_mask=self.use_mask)
            if train and self.running_mean is not None:
                self._update(source, axes, mean, variance)
        normalized = combine_bc(source, "sub", mean) * rsqrt(variance + self.eps)
        normalized = normalized.copy_transpose(source.dims)
        normalized.feature_dim = source.feature_dim
        if not (self.use_mask and any(d.need_masking() for d in source.dims)):
            return _affine(normalized, self.gamma, self.beta)
        # As RETURNN does with padding: two readings of each parameter, which weight_dropout draws for.
        if self.gamma is not None:
            normalized = normalized * self.gamma
        return normalized if self.beta is None else normalized + self.beta

    def _update(self, source: Tensor, axes: list[Dim], mean: Tensor, variance: Tensor) -> None:
        from returnn_hydra.frontend.create import num_elements_of_shape

        assert self.running_mean is not None
        assert self.running_variance is not None
        if not self.use_mask:
            count = num_elements_of_shape(axes, use_mask=False)
            variance = variance * (count / max(count - 1, 1)) if isinstance(count, int) else variance
        for running, value in ((self.running_mean, mean), (self.running_variance, variance)):
            running.assign_add((cast(value, running.dtype) - running) * self.momentum)


class RunningMean(Module):
    """Exponentially decaying mean over the batches: mean += alpha (batch mean - mean).

    Args:
        is_prob_distribution: starts as the uniform distribution.
    """

    def __init__(
        self,
        in_dim: Dim | Sequence[Dim],
        *,
        alpha: float,
        dtype: str | None = None,
        is_prob_distribution: bool | None = None,
        update_only_in_train: bool = True,
    ) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.alpha = alpha
        self.update_only_in_train = update_only_in_train
        self.mean = Parameter(_dims(in_dim), dtype, auxiliary=True)
        if is_prob_distribution:
            size = 1
            for dim in _dims(in_dim):
                size *= dim.get_dim_value()
            self.mean.initial = 1.0 / size

    def __call__(self, x: Tensor) -> Tensor:
        """Updates with x (in training) and returns the running mean."""
        if not self.update_only_in_train or get_run_ctx().train_flag:
            axes = [d for d in x.dims if d not in _dims(self.in_dim)]
            value = reduce_mean(x, axis=axes) if axes else x
            self.mean.assign_add((value - self.mean) * self.alpha)
        return self.mean.copy()
