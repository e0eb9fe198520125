"""Layers that change the gradient, not the value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.named_tensor import NamedTensor, unify
from returnn_hydra.network.registry import register_layer


class _PredictedGradient(torch.autograd.Function):
    """Identity; backward hands the prediction on, and lets the prediction learn the gradient that came."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, predicted: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(predicted)
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (predicted,) = ctx.saved_tensors
        return predicted, ctx.scale * 2.0 * (predicted - grad) / grad.numel(), None


def without_large_gradients(x: NamedTensor, threshold: float) -> NamedTensor:
    """The same values; sequences whose gradient has an entry with grad^2 >= threshold give none on (`grad_filter`)."""
    if not x.raw.requires_grad:
        return x
    rest = [i for i, axis in enumerate(x.axes) if not axis.is_batch_like]

    def keep(grad: Tensor) -> Tensor:
        return torch.where(grad.square().amax(rest, keepdim=True) < threshold, grad, torch.zeros_like(grad))

    raw = x.raw.view_as(x.raw)
    raw.register_hook(keep)
    return x.like(raw, feature=x.feature)


@register_layer("synthetic_gradient", refs=("gradient",), framewise=True)
def synthetic_gradient(call: LayerCall, *, gradient: str, meta_loss_scale: float = 1.0) -> Any:
    """The input; its gradient is replaced by the layer `gradient`, which learns the true one.

    Adds meta_loss_scale * mean((gradient - true gradient)^2) to the objective (Jaderberg et al., "Decoupled neural
    interfaces using synthetic gradients", 2017, section 2).
    """
    x, predicted = unify([call.x, call.layer(gradient)], call.scope.all_hidden)
    return x.like(_PredictedGradient.apply(x.raw, predicted.expanded(x.axes), meta_loss_scale))
