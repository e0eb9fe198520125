"""Norms that do not see the padding.

Legend: B sequences, T frames, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm (Ioffe and Szegedy 2015) with the statistics of the real frames only; zero at the padding."""

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """(B, T, F), and (B, T) with True at real frames -> (B, T, F)."""
        if not self.training:  # the stored statistics: no need to pick the real frames
            return super().forward(features.flatten(0, 1)).view_as(features) * mask[:, :, None]
        normed = super().forward(features[mask])
        filled = normed.new_zeros(features.shape)
        filled[mask] = normed
        return filled


class InputNorm(nn.Module):
    """Features with mean 0 and variance 1, by the statistics of all real frames seen in training so far.

    Unlike batch norm it does the same in training and evaluation, and a frame does not depend on its batch once the
    statistics have settled. They are kept in the checkpoint.

    Args:
        dim: F.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """(B, T, F), and (B, T) with True at real frames -> (B, T, F), zero at the padding.

        Raises:
            ValueError: labels instead of features.
        """
        if not features.is_floating_point():
            found = f"{features.dtype} of shape {tuple(features.shape)}"
            raise ValueError(f"{found}: expected features, floats (B, T, F); labels need a model with an embedding")
        if self.training:
            self._update(features.detach()[mask])
        normed = (features - self.mean) / self.variance.clamp(min=1e-8).sqrt()
        return normed * mask[:, :, None]

    def _update(self, frames: Tensor) -> None:
        """Join the statistics with those of further frames (N, F) (Chan et al. 1979, Updating Formulae, section 2)."""
        if len(frames) == 0:
            return
        new_count = self.count + len(frames)
        weight = len(frames) / new_count
        delta = frames.mean(0) - self.mean
        variance = frames.var(0, correction=0)
        self.variance.lerp_(variance, weight).add_(delta.square() * weight * (1 - weight))
        self.mean.add_(delta * weight)
        self.count.copy_(new_count)
