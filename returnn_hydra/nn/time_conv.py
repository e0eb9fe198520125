"""Convolution and pooling over time that do not see the padding, with exact lengths.

Legend: B sequences, T frames, F features, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from returnn_hydra.batch import sequence_mask


def strided_lengths(lengths: Tensor, stride: int) -> Tensor:
    """Frames left by a stride, the last incomplete group included: ceil(T / stride)."""
    return (lengths + stride - 1).div(stride, rounding_mode="floor")


class MaskedConv2d(nn.Module):
    """Convolution over time and features; zeros stand around a sequence, also where the batch has padding.

    Frame t' of the output looks at the input frames around t' * stride: T' = ceil(T / stride), and features likewise.

    Args:
        in_channels, out_channels: C in and out.
        kernel_size: odd, in both directions.
        time_stride, feature_stride: every how many frames and features an output is.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, time_stride: int = 1, feature_stride: int = 1
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: expected an odd number")
        self.time_stride = time_stride
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, (time_stride, feature_stride), padding=kernel_size // 2
        )

    def forward(self, images: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, T, F), (B,) -> (B, C', T', F'), (B,)."""
        mask = sequence_mask(lengths, images.shape[2])[:, None, :, None]
        return self.conv(images * mask), strided_lengths(lengths, self.time_stride)


class MaskedMaxPool2d(nn.Module):
    """Largest value of each group of frames and features; incomplete groups at the end count.

    Args:
        time_size, feature_size: frames and features in a group.
    """

    def __init__(self, time_size: int, feature_size: int) -> None:
        super().__init__()
        self.time_size = time_size
        self.feature_size = feature_size

    def forward(self, images: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, T, F), (B,) -> (B, C, T', F'), (B,)."""
        mask = sequence_mask(lengths, images.shape[2])[:, None, :, None]
        images = images.masked_fill(~mask, torch.finfo(images.dtype).min)
        pooled = F.max_pool2d(images, (self.time_size, self.feature_size), ceil_mode=True)
        lengths = strided_lengths(lengths, self.time_size)
        return pooled * sequence_mask(lengths, pooled.shape[2])[:, None, :, None], lengths


class DepthwiseTimeConv(nn.Module):
    """Each feature is convolved over time by itself; zeros stand around a sequence.

    Args:
        dim: F.
        kernel_size: frames, odd.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: expected an odd number")
        self.conv = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """(B, T, F), and (B, T) with True at real frames -> (B, T, F)."""
        return self.conv((features * mask[:, :, None]).transpose(1, 2)).transpose(1, 2)


def group_frames(features: Tensor, lengths: Tensor, factor: int, reduction: str) -> tuple[Tensor, Tensor]:
    """Neighbouring frames become one: (B, T, F), (B,) -> (B, T', F'), (B,) with T' = ceil(T / factor).

    Args:
        reduction: "concat": F' = factor * F, zeros where the last group lacks frames; "max": F' = F, padding is zero.

    Raises:
        ValueError: another word for `reduction`.
    """
    size = (features.shape[1] + factor - 1) // factor
    new_lengths = strided_lengths(lengths, factor)
    mask = sequence_mask(lengths, features.shape[1])[:, :, None]
    if reduction == "concat":
        padded = F.pad(features * mask, (0, 0, 0, factor - 1))[:, : size * factor]
        grouped = padded.unflatten(1, (size, factor)).flatten(2)
    elif reduction == "max":
        least = torch.finfo(features.dtype).min
        padded = F.pad(features.masked_fill(~mask, least), (0, 0, 0, factor - 1), value=least)[:, : size * factor]
        grouped = padded.unflatten(1, (size, factor)).amax(dim=2)
        grouped = grouped * sequence_mask(new_lengths, size)[:, :, None]
    else:
        raise ValueError(f"reduction={reduction!r}: expected concat or max")
    return grouped, new_lengths
