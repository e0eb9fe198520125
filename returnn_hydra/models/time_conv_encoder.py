"""Convolutions over time: every output sees a fixed number of frames around it, and no more.

Legend: B sequences, T frames, F input features, H hidden features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from returnn_hydra.batch import sequence_mask
from returnn_hydra.nn.norm import MaskedBatchNorm
from returnn_hydra.nn.time_conv import strided_lengths


class TimeConvEncoder(nn.Module):
    """Time-delay network (Waibel et al. 1989, Phoneme Recognition Using Time-Delay Neural Networks) with batch norm,
    ReLU, dropout and, where the number of frames stays, residual connections (as in Li et al. 2019, Jasper).

    Args:
        input_dim: F.
        output_dim: C; None: no output layer, the H features (also as attribute `output_dim`).
        hidden_dim: H.
        strides: one for each layer: frames that become one; T' = T divided by each in turn, rounded up.
        kernel_size: frames that a layer sees, odd.
        dropout: behind each layer, in training.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int | None = None,
        hidden_dim: int = 128,
        strides: Sequence[int] = (2, 2, 1, 1),
        kernel_size: int = 7,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: expected an odd number")
        self.strides = list(strides)
        dims = [input_dim] + [hidden_dim] * len(self.strides)
        self.convs = nn.ModuleList(
            nn.Conv1d(dims[layer], hidden_dim, kernel_size, stride, padding=kernel_size // 2)
            for layer, stride in enumerate(self.strides)
        )
        self.norms = nn.ModuleList(MaskedBatchNorm(hidden_dim) for _ in self.strides)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Identity() if output_dim is None else nn.Linear(hidden_dim, output_dim)
        self.output_dim = hidden_dim if output_dim is None else output_dim

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) -> logits (B, T', C) or features (B, T', H), (B,)."""
        features = features * sequence_mask(lengths, features.shape[1])[:, :, None]
        for layer, stride in enumerate(self.strides):
            convolved = self.convs[layer](features.transpose(1, 2)).transpose(1, 2)
            lengths = strided_lengths(lengths, stride)
            mask = sequence_mask(lengths, convolved.shape[1])
            hidden = self.dropout(self.norms[layer](convolved, mask).relu())
            features = features + hidden if layer > 0 and stride == 1 else hidden
            features = features * mask[:, :, None]
        return self.output(features), lengths
