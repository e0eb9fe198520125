"""Bidirectional LSTM with a linear output layer.

Legend: B sequences, T frames, F input features, H hidden units per direction, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from returnn_hydra.batch import sequence_mask
from returnn_hydra.nn.lstm import LSTM
from returnn_hydra.nn.norm import InputNorm


class BLSTM(nn.Module):
    """Class scores for every frame from the whole sequence.

    Args:
        input_dim: F.
        output_dim: C; None: no output layer, the top layer's 2H features (also as attribute `output_dim`).
        hidden_dim: H.
        num_layers: bidirectional layers, each reading both directions of the one below.
        dropout: on the outputs of every layer, in training.
        input_norm: normalise the inputs, by the mean and variance of all frames seen in training (`InputNorm`).
        input_noise: standard deviation of Gaussian noise on the (normalised) inputs, in training.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int | None = None,
        hidden_dim: int = 64,
        num_layers: int = 1,
        dropout: float = 0.0,
        input_norm: bool = False,
        input_noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_norm = InputNorm(input_dim) if input_norm else None
        self.input_noise = input_noise
        self.lstm = LSTM(input_dim, hidden_dim, num_layers, bidirectional=True, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Identity() if output_dim is None else nn.Linear(2 * hidden_dim, output_dim)
        self.output_dim = 2 * hidden_dim if output_dim is None else output_dim

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (before softmax), or features without an output layer, and their lengths.

        Args:
            features: (B, T, F).
            lengths: (B,).

        Returns:
            (B, T, C) or (B, T, 2H), and (B,).
        """
        if self.input_norm is not None:
            features = self.input_norm(features, sequence_mask(lengths, features.shape[1]))
        if self.training and self.input_noise > 0.0:
            features = features + self.input_noise * torch.randn_like(features)
        outputs, lengths = self.lstm(features, lengths)
        return self.output(self.dropout(outputs)), lengths
