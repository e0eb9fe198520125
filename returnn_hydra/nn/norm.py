"""Norms that do not see the padding.

Legend: B sequences, T frames, F features.
"""

from __future__ import annotations

from torch import Tensor, nn


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch norm (Ioffe and Szegedy 2015) with the statistics of the real frames only; zero at the padding."""

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """(B, T, F), and (B, T) with True at real frames -> (B, T, F)."""
        normed = super().forward(features[mask])
        return features.new_zeros(features.shape, dtype=normed.dtype).masked_scatter(mask[:, :, None], normed)
