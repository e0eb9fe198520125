"""What happens to the gradients between backward and the optimizer step: norm, noise, clipping.

The order is RETURNN's: the norm is measured first, then noise, then the limit per element, then the limit of the norm.
All work happens on the parameters' device and waits for nothing. Gradients may be parts of whole ones (DTensor, FSDP):
norms are those of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class GradientRules:
    """All off by default.

    Raises:
        ValueError: a limit that is not above 0, or noise below 0.
    """

    max_norm: float | None = None
    """Scale all gradients so that their common norm is at most this (`gradient_clip_global_norm`)."""
    max_value: float | None = None
    """Clamp every element to [-max_value, max_value] (`gradient_clip`)."""
    noise: float = 0.0
    """Standard deviation of the noise that is added; values beyond two deviations are not drawn (`gradient_noise`)."""
    max_norm_per_tensor: float | None = None
    """Scale every gradient so that its own norm is at most this (`gradient_clip_norm`)."""
    norm_type: float = 2.0
    """p of the norms; inf: the largest element."""
    measured_norm_type: float | None = None
    """p of the norm that `apply` returns, where it is another one."""

    def __post_init__(self) -> None:
        for name in ("max_norm", "max_value", "max_norm_per_tensor", "norm_type", "measured_norm_type"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value!r}: expected a number above 0, or None to switch it off")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise={self.noise!r}: expected a number from 0")

    def apply(self, parameters: Iterable[nn.Parameter], generator: torch.Generator | None = None) -> Tensor:
        """Change the gradients in place.

        Args:
            generator: for the noise; default: torch's own.

        Returns:
            The norm of all gradients before any change, a scalar tensor; NaN or infinite if one of them is bad.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = measured = global_norm(gradients, self.norm_type)
        if self.measured_norm_type not in (None, self.norm_type):
            measured = global_norm(gradients, self.measured_norm_type)
        if self.noise > 0:
            add_noise(gradients, self.noise, generator)
        if self.max_value is not None:
            for gradient in gradients:
                gradient.clamp_(-self.max_value, self.max_value)
        if self.max_norm_per_tensor is not None:
            for gradient in gradients:
                limit_norm([gradient], self.max_norm_per_tensor, global_norm([gradient], self.norm_type))
        if self.max_norm is not None:
            changed = self.noise > 0 or self.max_value is not None or self.max_norm_per_tensor is not None
            limit_norm(gradients, self.max_norm, global_norm(gradients, self.norm_type) if changed else norm)
        return measured


def global_norm(gradients: Sequence[Tensor], norm_type: float = 2.0) -> Tensor:
    """The p-norm of all elements together, a scalar tensor (0 without gradients)."""
    if not gradients:
        return torch.zeros(())
    if _is_alike(gradients):  # what get_total_norm does then, without sorting them into groups
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients), norm_type)), norm_type)
    norm = torch.nn.utils.get_total_norm(gradients, norm_type)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def _is_alike(gradients: Sequence[Tensor]) -> bool:
    """Plain tensors on one device with one type."""
    first = gradients[0]
    return all(type(g) is Tensor and g.dtype == first.dtype and g.device == first.device for g in gradients)


def limit_norm(gradients: Sequence[Tensor], max_norm: float, norm: Tensor) -> None:
    """Scale in place by max_norm / (norm + 1e-6) where that is below 1, as torch's clip_grad_norm_ does."""
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    if gradients and _is_alike(gradients):
        torch._foreach_mul_(list(gradients), factor.to(gradients[0].device, gradients[0].dtype))
        return
    for gradient in gradients:
        gradient.mul_(factor.to(gradient.device, gradient.dtype))


def add_noise(gradients: Sequence[Tensor], deviation: float, generator: torch.Generator | None = None) -> None:
    """Add values of a normal distribution (mean 0, cut off at two deviations) in place."""
    for gradient in gradients:
        own = gradient.to_local() if hasattr(gradient, "to_local") else gradient
        noise = torch.empty_like(own, memory_format=torch.contiguous_format)
        nn.init.trunc_normal_(noise, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator)
        own.add_(noise)
