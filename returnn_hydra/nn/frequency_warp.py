"""Frequency warping of log-mel features: other vocal tracts, in training.

Legend: B sequences, T frames, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FrequencyWarp(nn.Module):
    """Vocal tract length perturbation (Jaitly and Hinton 2013, Vocal Tract Length Perturbation improves speech
    recognition), on mel filterbank energies: what stood at a frequency f stands at f / a, with a factor a drawn for
    every sequence. Between the filters the energies are interpolated. Evaluation leaves them alone.

    The filters are taken to stand equally far apart on the mel scale m(f) = ln(1 + f / 700 Hz) (O'Shaughnessy 1987),
    from 0 to half the sample rate.

    Args:
        max_factor: the largest a; its logarithm is uniform in -ln(max_factor) .. ln(max_factor).
        sample_rate: of the audio, in Hz.

    Raises:
        ValueError: max_factor below 1.
    """

    def __init__(self, max_factor: float = 1.15, sample_rate: float = 16_000) -> None:
        super().__init__()
        if max_factor < 1.0:
            raise ValueError(f"max_factor={max_factor}: expected at least 1")
        self.max_factor = max_factor
        self.highest = sample_rate / 2

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) -> (B, T, F), and the lengths as they came."""
        if not self.training:
            return features, lengths
        draws = 2.0 * torch.rand(len(features), device=features.device) - 1.0
        return warp_frequencies(features, self.max_factor**draws, self.highest), lengths


def warp_frequencies(features: Tensor, factors: Tensor, highest: float) -> Tensor:
    """(B, T, F), a (B,) -> (B, T, F): at the frequency f what was at a * f; the highest filter goes on above itself.

    Args:
        highest: frequency of the last filter, in Hz.
    """
    num_filters = features.shape[2]
    scale = torch.tensor(highest / 700.0, device=features.device).log1p() / max(num_filters - 1, 1)
    frequencies = torch.expm1(torch.arange(num_filters, device=features.device) * scale)  # in units of 700 Hz
    positions = (torch.log1p(factors[:, None] * frequencies) / scale).clamp(max=num_filters - 1)  # (B, F)
    left = positions.long().clamp(max=max(num_filters - 2, 0))
    part = (positions - left)[:, None].to(features.dtype)
    take = left[:, None].expand(features.shape)
    below, above = features.gather(2, take), features.gather(2, (take + 1).clamp(max=num_filters - 1))
    return below + part * (above - below)
