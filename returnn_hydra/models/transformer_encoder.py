"""Transformer encoder.

Legend: B sequences, T frames, F input features, D model features, C classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from returnn_hydra.models.conv_frontend import StridedConvFrontend
from returnn_hydra.nn.transformer import TransformerStack


class TransformerEncoder(nn.Module):
    """Transformer layers over frames (Vaswani et al. 2017, norms first), behind a linear or convolutional input layer.

    Args:
        input_dim: F.
        output_dim: C; None: no output layer, the D features (also as attribute `output_dim`).
        model_dim: D.
        num_layers: transformer layers.
        num_heads: attention heads.
        feed_forward_dim: default 4D.
        dropout: in training.
        positions: "sinusoidal" (added to the input), "relative", "rotary" (in the attention), "none".
        subsampling: 1, or a power of two: `StridedConvFrontend`; T' = ceil(T / subsampling).
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int | None = None,
        model_dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 4,
        feed_forward_dim: int | None = None,
        dropout: float = 0.1,
        positions: str = "rotary",
        subsampling: int = 1,
    ) -> None:
        super().__init__()
        self.frontend = StridedConvFrontend(input_dim, model_dim, factor=subsampling) if subsampling > 1 else None
        self.input = nn.Identity() if subsampling > 1 else nn.Linear(input_dim, model_dim)
        self.layers = TransformerStack(model_dim, num_layers, num_heads, feed_forward_dim, dropout, positions)
        self.output = nn.Identity() if output_dim is None else nn.Linear(model_dim, output_dim)
        self.output_dim = model_dim if output_dim is None else output_dim

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) -> logits (B, T', C) or features (B, T', D), (B,)."""
        if self.frontend is not None:
            features, lengths = self.frontend(features, lengths)
        return self.output(self.layers(self.input(features), lengths)), lengths
