"""Conformer encoder.

Legend: B sequences, T frames, F input features, D model features, C classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from returnn_hydra.batch import sequence_mask
from returnn_hydra.models.conv_frontend import StridedConvFrontend
from returnn_hydra.nn.attention import SelfAttention
from returnn_hydra.nn.norm import MaskedBatchNorm
from returnn_hydra.nn.time_conv import DepthwiseTimeConv
from returnn_hydra.nn.transformer import FeedForward

NORMS = ("batch", "layer")


class Conformer(nn.Module):
    """Convolution-augmented transformer (Gulati et al. 2020, Conformer) behind a linear or a convolutional input layer.

    Args:
        input_dim: F.
        output_dim: C; None: no output layer, the D features (also as attribute `output_dim`).
        model_dim: D.
        num_layers: conformer blocks.
        num_heads: attention heads.
        feed_forward_dim: default 4D.
        kernel_size: frames that the convolution of a block sees, odd.
        conv_norm: norm inside the convolution part: "batch" (as published) or "layer".
        dropout: in training.
        positions: in the attention: "relative" (as published), "rotary", "none".
        subsampling: 1, or a power of two: `StridedConvFrontend`; T' = ceil(T / subsampling).
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int | None = None,
        model_dim: int = 144,
        num_layers: int = 6,
        num_heads: int = 4,
        feed_forward_dim: int | None = None,
        kernel_size: int = 15,
        conv_norm: str = "batch",
        dropout: float = 0.1,
        positions: str = "relative",
        subsampling: int = 1,
    ) -> None:
        super().__init__()
        self.frontend = StridedConvFrontend(input_dim, model_dim, factor=subsampling) if subsampling > 1 else None
        self.input = nn.Identity() if subsampling > 1 else nn.Linear(input_dim, model_dim)
        self.dropout = nn.Dropout(dropout)
        hidden_dim = feed_forward_dim or 4 * model_dim
        self.blocks = nn.ModuleList(
            ConformerBlock(model_dim, num_heads, hidden_dim, kernel_size, conv_norm, dropout, positions)
            for _ in range(num_layers)
        )
        self.output = nn.Identity() if output_dim is None else nn.Linear(model_dim, output_dim)
        self.output_dim = model_dim if output_dim is None else output_dim

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) -> logits (B, T', C) or features (B, T', D), (B,)."""
        if self.frontend is not None:
            features, lengths = self.frontend(features, lengths)
        features = self.dropout(self.input(features))
        mask = sequence_mask(lengths, features.shape[1])
        for block in self.blocks:
            features = block(features, mask)
        return self.output(features), lengths


class ConformerBlock(nn.Module):
    """Half a feed-forward part, self-attention, convolution, half a feed-forward part, norm (section 2.4).

    Args:
        model_dim: D.
        num_heads: attention heads.
        feed_forward_dim: features inside the feed-forward parts.
        kernel_size, conv_norm, dropout, positions: see `Conformer`.
    """

    def __init__(
        self,
        model_dim: int,
        num_heads: int,
        feed_forward_dim: int,
        kernel_size: int,
        conv_norm: str,
        dropout: float,
        positions: str,
    ) -> None:
        super().__init__()
        self.first_norm = nn.LayerNorm(model_dim)
        self.first_feed_forward = FeedForward(model_dim, feed_forward_dim, dropout, nn.SiLU())
        self.attention_norm = nn.LayerNorm(model_dim)
        self.attention = SelfAttention(model_dim, num_heads, positions, dropout)
        self.conv = ConvolutionPart(model_dim, kernel_size, conv_norm, dropout)
        self.second_norm = nn.LayerNorm(model_dim)
        self.second_feed_forward = FeedForward(model_dim, feed_forward_dim, dropout, nn.SiLU())
        self.norm = nn.LayerNorm(model_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D), and (B, T) with True at real frames -> (B, T, D)."""
        features = features + 0.5 * self.first_feed_forward(self.first_norm(features))
        features = features + self.dropout(self.attention(self.attention_norm(features), mask))
        features = features + self.conv(features, mask)
        features = features + 0.5 * self.second_feed_forward(self.second_norm(features))
        return self.norm(features)


class ConvolutionPart(nn.Module):
    """Norm, gated pointwise layer, depthwise convolution over time, norm, SiLU, pointwise layer (section 2.2).

    Raises:
        ValueError: another norm than "batch" or "layer".
    """

    def __init__(self, model_dim: int, kernel_size: int, norm: str, dropout: float) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"conv_norm={norm!r}: expected one of {', '.join(NORMS)}")
        self.input_norm = nn.LayerNorm(model_dim)
        self.gated = nn.Sequential(nn.Linear(model_dim, 2 * model_dim), nn.GLU(dim=-1))
        self.depthwise = DepthwiseTimeConv(model_dim, kernel_size)
        self.norm = MaskedBatchNorm(model_dim) if norm == "batch" else nn.LayerNorm(model_dim)
        self.output = nn.Sequential(nn.SiLU(), nn.Linear(model_dim, model_dim), nn.Dropout(dropout))

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D), (B, T) -> (B, T, D)."""
        convolved = self.depthwise(self.gated(self.input_norm(features)), mask)
        if isinstance(self.norm, MaskedBatchNorm):
            return self.output(self.norm(convolved, mask))
        return self.output(self.norm(convolved))
