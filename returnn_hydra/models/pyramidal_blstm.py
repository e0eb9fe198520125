"""Bidirectional LSTM whose layers see fewer and fewer frames.

Legend: B sequences, T frames, F input features, H hidden units per direction, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from returnn_hydra.nn.lstm import LSTM
from returnn_hydra.nn.time_conv import group_frames


class PyramidalBLSTM(nn.Module):
    """BLSTM layers with a reduction of the frames between them.

    Chan et al. 2016, Listen, Attend and Spell, section 3.1, concatenate neighbours; Zeyer et al. 2018, Improved
    Training of End-to-end Attention Models for Speech Recognition, section 3, take the maximum.

    Args:
        input_dim: F.
        output_dim: C; None: no output layer, the top layer's 2H features (also as attribute `output_dim`).
        hidden_dim: H.
        reductions: one for each gap between layers (so there is one layer more): frames that become one; 1 leaves them.
            T' = T divided by each in turn, rounded up.
        reduction: "concat" or "max".
        dropout: on the outputs of every layer, in training.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int | None = None,
        hidden_dim: int = 128,
        reductions: Sequence[int] = (2, 2),
        reduction: str = "max",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.reductions = list(reductions)
        self.reduction = reduction
        layers = [LSTM(input_dim, hidden_dim, bidirectional=True)]
        for factor in self.reductions:
            frame_dim = 2 * hidden_dim * (factor if reduction == "concat" else 1)
            layers.append(LSTM(frame_dim, hidden_dim, bidirectional=True))
        self.layers = nn.ModuleList(layers)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Identity() if output_dim is None else nn.Linear(2 * hidden_dim, output_dim)
        self.output_dim = 2 * hidden_dim if output_dim is None else output_dim

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) -> logits (B, T', C) or features (B, T', 2H), (B,)."""
        for index, layer in enumerate(self.layers):
            if index > 0:
                features, lengths = group_frames(features, lengths, self.reductions[index - 1], self.reduction)
            features, _ = layer(features, lengths)
            features = self.dropout(features)
        return self.output(features), lengths
