"""Positions in a sequence: sinusoids, rotations, and relative distances.

Legend: B sequences, H heads, T queries, S keys, D model features, E features per head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """Sinusoidal encoding (Vaswani et al. 2017, Attention Is All You Need, section 3.5): sines first, then cosines.

    Args:
        positions: any shape, may be negative.
        dim: even.

    Returns:
        (..., dim) float32; feature i < dim/2 is sin(p / 10000^(2i/dim)), feature dim/2 + i its cosine.
    """
    exponents = torch.arange(dim // 2, device=positions.device, dtype=torch.float32)
    frequencies = torch.exp(exponents * (-2.0 * math.log(10000.0) / dim))
    angles = positions[..., None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def rotate(features: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, RoFormer, equation 34).

    The feature pairs (i, i + E/2) are turned by the angle position * frequency(i), see `sinusoids`. The
    product of two rotated vectors depends on the difference of their positions only.

    Args:
        features: (..., T, E), E even.
        positions: (T,).
    """
    half = features.shape[-1] // 2
    table = sinusoids(positions, features.shape[-1]).to(features.dtype)
    sin, cos = table[..., :half], table[..., half:]
    first, second = features[..., :half], features[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def relative_shift(scores: Tensor) -> Tensor:
    """From scores by distance to scores by key (Dai et al. 2019, Transformer-XL, appendix B).

    Args:
        scores: (..., T, 2T-1): for query t, column c belongs to the distance t - s = T - 1 - c.

    Returns:
        (..., T, T): for query t and key s the score of the distance t - s.
    """
    size = scores.shape[-2]
    padded = torch.nn.functional.pad(scores, (1, 0)).flatten(-2)  # (..., T * 2T)
    shifted = padded[..., size:]  # (..., T * (2T-1)): read in rows of 2T-1, each starts one column before the last
    return shifted.reshape(*scores.shape[:-2], size, 2 * size - 1)[..., :size]
