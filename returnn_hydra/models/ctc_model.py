"""An encoder with a CTC output.

Legend: B sequences, T frames, T' encoder frames, F input features, C classes (labels and the blank).
"""

from __future__ import annotations

from torch import Tensor, nn


class CTCModel(nn.Module):
    """A linear output layer for CTC on any encoder; blank is the last class.

    Args:
        encoder: (B, T, F), (B,) -> (B, T', E), (B,), with E as attribute `output_dim`.
        num_labels: of the vocabulary; C = num_labels + 1.
        dropout: on the encoder's outputs, in training.
    """

    def __init__(self, encoder: nn.Module, num_labels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.output_dim = num_labels + 1
        self.output = nn.Linear(int(encoder.output_dim), self.output_dim)  # type: ignore[arg-type]

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) -> logits (B, T', C), (B,)."""
        encoded, lengths = self.encoder(features, lengths)
        return self.output(self.dropout(encoded)), lengths
