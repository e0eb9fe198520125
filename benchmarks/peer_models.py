"""Models of benchmarks/peers.py in plain torch, for whoever trains them. Legend: B sequences, T frames, F features."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class PackedBLSTM(nn.Module):
    """torch's LSTM over packed sequences, as one writes it where there is no `returnn_hydra.nn.lstm`.

    Its parameters have the names of `returnn_hydra.models.blstm.BLSTM`.
    """

    def __init__(self, input_dim: int, output_dim: int, hidden_dim: int = 128, num_layers: int = 2) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_dim, hidden_dim, num_layers, bidirectional=True, batch_first=True)
        self.output = nn.Linear(2 * hidden_dim, output_dim)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F) and (B,) on the CPU -> logits (B, T, C), and the lengths."""
        packed = pack_padded_sequence(features, lengths, batch_first=True, enforce_sorted=False)
        outputs, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.output(outputs), lengths


class Conv(nn.Module):
    """Three convolutions over time, of the sizes in RETURNN's demo for torch (50 and 100 channels, 5 frames)."""

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(input_dim, 50, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(50, 100, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(100, output_dim, 5, padding=2),
        )

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F) and (B,) -> logits (B, T, C), and the lengths."""
        return self.layers(features.transpose(1, 2)).transpose(1, 2), lengths
