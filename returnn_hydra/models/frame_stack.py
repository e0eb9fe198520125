"""Neighbouring frames stacked to one, in front of an encoder.

Legend: B sequences, T frames, F features, S factor.
"""

from __future__ import annotations

from torch import Tensor, nn

from returnn_hydra.nn.time_conv import group_frames


class FrameStack(nn.Module):
    """S frames become one with S times the features: fewer steps for what comes behind, and nothing lost (Sak et al.
    2015, Fast and Accurate Recurrent Neural Network Acoustic Models for Speech Recognition, section 2.1).

    Args:
        input_dim: F.
        factor: S; the last group is filled up with zeros.
    """

    def __init__(self, input_dim: int, factor: int) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"factor={factor}: expected at least 1")
        self.factor = factor
        self.output_dim = factor * input_dim

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) -> (B, ceil(T / S), S * F), (B,)."""
        return group_frames(features, lengths, self.factor, "concat")
