"""Gradients: stopping, scaling, taking them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.elementwise import where
from returnn_hydra.frontend.tensor import Tensor


def set_requires_gradient(source: Tensor) -> None:
    """Make it a leaf that collects a gradient."""
    source.raw_tensor.requires_grad_(True)


def gradient(y: Tensor, x: Tensor) -> Tensor:
    """dy/dx for a scalar y."""
    return x._new(x.dims, torch.autograd.grad(y.raw_tensor, x.raw_tensor, create_graph=True)[0], name="gradient")


def stop_gradient(source: Tensor) -> Tensor:
    """The same values, without gradient."""
    return source._new(source.dims, source.raw_tensor.detach())


@contextlib.contextmanager
def stop_gradient_scope() -> Iterator[None]:
    """No gradients inside the block."""
    with torch.no_grad():
        yield


@contextlib.contextmanager
def gradient_checkpoint_scope() -> Iterator[None]:
    """Accepted; activations are kept, not recomputed."""
    yield


class _ScaleGradient(torch.autograd.Function):
    """Identity; the gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: Any) -> torch.Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * ctx.scale, None


class _ShiftGradient(torch.autograd.Function):
    """Identity; something is added to the gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: Any, shift: Any, axis: int | None) -> torch.Tensor:
        ctx.scale, ctx.shift, ctx.axis = scale, shift, axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad = grads[0] * ctx.scale
        if ctx.shift is not None:
            factor = 1.0 if ctx.axis is None else grads[0].abs().sum(dim=ctx.axis, keepdim=True)
            grad = grad + ctx.shift * factor
        return grad, None, None, None


def scaled_gradient(source: Tensor, scale: float | Tensor) -> Tensor:
    """The same values; the gradient is multiplied by `scale`."""
    factor = scale.copy_compatible_to_dims_raw(source.dims) if isinstance(scale, Tensor) else scale
    return source._new(source.dims, _ScaleGradient.apply(source.raw_tensor, factor))


def scaled_gradient_ext(
    source: Tensor, *, scale: float | Tensor = 1.0, shift: Any = None, scale_shift_by_sum_over_axis: Dim | None = None
) -> Tensor:
    """The same values; the gradient g becomes scale * g + shift (times the sum of |g| over an axis, if given)."""
    axis = None
    if scale_shift_by_sum_over_axis is not None:
        axis = source.get_axis_from_description(scale_shift_by_sum_over_axis)
    values = [v.copy_compatible_to_dims_raw(source.dims) if isinstance(v, Tensor) else v for v in (scale, shift)]
    return source._new(source.dims, _ShiftGradient.apply(source.raw_tensor, *values, axis))


def label_smoothing(prob: Tensor, smoothing: float | Tensor, *, axis: Dim | None = None) -> Tensor:
    """Targets with some probability spread over all other classes.

    Class indices: 1 - smoothing at the class, smoothing / (N - 1) at the others.
    Distributions p: p + smoothing * (uniform over the others - p), which gives the same for a one-hot p.
    """
    from returnn_hydra.frontend.indexing import smooth_one_hot

    if prob.sparse_dim is not None and axis in (None, prob.sparse_dim):
        return smooth_one_hot(prob, label_prob=1.0 - smoothing)
    axis = axis or prob.feature_dim
    if axis is None or axis.dimension is None:
        raise ValueError(f"label_smoothing: {prob} needs an axis of static size")
    # p (1 - s) + (1 - p) s / (N - 1)
    other = smoothing / (axis.dimension - 1)
    return prob * (1.0 - smoothing - other) + other


def label_smoothed_log_prob_gradient(
    log_prob: Tensor,
    smoothing: float | Tensor,
    *,
    axis: Dim | None = None,
    exclude_labels: Sequence[int] | None = None,
) -> Tensor:
    """The same values; the gradient is that of label smoothing.

    With gradient g of the loss w.r.t. log_prob, of N classes, and S the sum of |g| over them, it becomes
    g (1 - s N/(N-1)) - S s/(N-1): of a cross entropy, every class gets smoothing / (N - 1) of the total.
    `exclude_labels` neither get nor lose any, but their |g| counts in S, as in RETURNN.
    """
    if isinstance(smoothing, (int, float)) and smoothing == 0:
        return log_prob
    axis = axis or log_prob.feature_dim
    if axis is None or axis.dimension is None:
        raise ValueError(f"label_smoothed_log_prob_gradient: {log_prob} needs an axis of static size")
    excluded = list(exclude_labels or ())
    share = smoothing / (axis.dimension - len(excluded) - 1)
    scale: Any = 1.0 - smoothing - share
    shift: Any = -share
    if excluded:
        kept = torch.ones(axis.dimension, dtype=torch.bool, device=log_prob.raw_tensor.device)
        kept[excluded] = False
        mask = Tensor("kept", dims=[axis], dtype="bool", raw_tensor=kept)
        scale, shift = where(mask, scale, 1.0), where(mask, shift, 0.0)
    return scaled_gradient_ext(log_prob, scale=scale, shift=shift, scale_shift_by_sum_over_axis=axis)
