"""SpecAugment: zeros over random stretches of time and features, in training.

Legend: B sequences, T frames, F features, M masks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from returnn_hydra.batch import sequence_mask


class SpecAugment(nn.Module):
    """Time and frequency masking (Park et al. 2019, SpecAugment, section 2), drawn for every sequence by itself.

    The features should have a mean of about zero, which is what masked ones become. Evaluation leaves them alone.

    Args:
        num_time_masks: stretches of frames that are masked.
        max_time_width: longest such stretch, in frames; the width is uniform in 0..max.
        max_time_part: no such stretch is longer than this part of its sequence (Park et al.: p).
        num_feature_masks: stretches of features that are masked.
        max_feature_width: most features in such a stretch.
    """

    def __init__(
        self,
        num_time_masks: int = 2,
        max_time_width: int = 20,
        max_time_part: float = 0.2,
        num_feature_masks: int = 2,
        max_feature_width: int = 8,
    ) -> None:
        super().__init__()
        self.num_time_masks = num_time_masks
        self.max_time_width = max_time_width
        self.max_time_part = max_time_part
        self.num_feature_masks = num_feature_masks
        self.max_feature_width = max_feature_width

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) -> (B, T, F), and the lengths as they came.

        Raises:
            ValueError: `max_feature_width` is larger than F.
        """
        num_features = features.shape[2]
        if self.max_feature_width > num_features:
            raise ValueError(f"max_feature_width={self.max_feature_width}, but there are only {num_features} features")
        if not self.training:
            return features, lengths
        widest = (lengths * self.max_time_part).long().clamp(max=self.max_time_width)
        in_time = _stretches(lengths, widest, self.num_time_masks, features.shape[1])
        sizes = torch.full_like(lengths, num_features)
        widths = torch.full_like(lengths, self.max_feature_width)
        in_features = _stretches(sizes, widths, self.num_feature_masks, num_features)
        masked = in_time[:, :, None] | in_features[:, None, :]
        return features.masked_fill(masked & sequence_mask(lengths, features.shape[1])[:, :, None], 0.0), lengths


def _stretches(sizes: Tensor, widest: Tensor, num_masks: int, axis_size: int) -> Tensor:
    """Random stretches of an axis: real sizes (B,), largest widths (B,) -> (B, axis_size), True inside."""
    shape = (len(sizes), num_masks)
    widths = _uniform(widest[:, None].expand(shape))
    starts = _uniform(sizes[:, None] - widths)
    index = torch.arange(axis_size, device=sizes.device)
    inside = (index >= starts[:, :, None]) & (index < (starts + widths)[:, :, None])  # (B, M, axis_size)
    return inside.any(dim=1)


def _uniform(highest: Tensor) -> Tensor:
    """Integers, uniform in 0 .. highest."""
    return (torch.rand(highest.shape, device=highest.device) * (highest + 1)).long().minimum(highest)
