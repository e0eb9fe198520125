"""Convolutional front-ends: fewer frames with more context for the encoder behind.

Legend: B sequences, T frames, F input features, D output features, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from returnn_hydra.nn.time_conv import MaskedConv2d, MaskedMaxPool2d


class VGGFrontend(nn.Module):
    """Blocks of two 3x3 convolutions with ReLU and a max pooling (Simonyan and Zisserman 2015; for speech: Hori et al.
    2017, Joint CTC-Attention with a Deep CNN Encoder, section 3.1), then a linear layer.

    Args:
        input_dim: F.
        output_dim: D.
        channels: C of each block.
        time_pooling: frames that each block makes one; T' = T divided by their product, rounded up.
        feature_pooling: features that each block makes one.

    Raises:
        ValueError: the three lists differ in length.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        channels: Sequence[int] = (32, 64),
        time_pooling: Sequence[int] = (2, 2),
        feature_pooling: Sequence[int] = (2, 2),
    ) -> None:
        super().__init__()
        if not len(channels) == len(time_pooling) == len(feature_pooling):
            raise ValueError(
                f"channels={list(channels)}, time_pooling={list(time_pooling)}, "
                f"feature_pooling={list(feature_pooling)}: expected as many of each"
            )
        layers: list[nn.Module] = []
        num_channels, num_features = 1, input_dim
        for block_channels, time_size, feature_size in zip(channels, time_pooling, feature_pooling, strict=True):
            layers += [
                MaskedConv2d(num_channels, block_channels),
                MaskedConv2d(block_channels, block_channels),
                MaskedMaxPool2d(time_size, feature_size),
            ]
            num_channels, num_features = block_channels, -(-num_features // feature_size)
        self.layers = nn.ModuleList(layers)
        self.output = nn.Linear(num_channels * num_features, output_dim)
        self.output_dim = output_dim

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) -> (B, T', D), (B,)."""
        images = features[:, None]  # (B, C=1, T, F)
        for layer in self.layers:
            images, lengths = layer(images, lengths)
            if isinstance(layer, MaskedConv2d):
                images = images.relu()
        return self.output(images.transpose(1, 2).flatten(2)), lengths


class StridedConvFrontend(nn.Module):
    """3x3 convolutions with stride 2 in time and features and ReLU, then a linear layer (as in Gulati et al. 2020,
    Conformer, section 2; sizes of ESPnet's Conv2dSubsampling, with zero padding so that lengths round up).

    Args:
        input_dim: F.
        output_dim: D.
        channels: C.
        factor: 1, 2, 4, 8, ...: T' = ceil(T / factor).

    Raises:
        ValueError: `factor` is no power of two.
    """

    def __init__(self, input_dim: int, output_dim: int, channels: int = 32, factor: int = 4) -> None:
        super().__init__()
        if factor < 1 or factor & (factor - 1):
            raise ValueError(f"factor={factor}: expected a power of two")
        num_layers = max(1, factor.bit_length() - 1)
        num_features = input_dim
        self.layers = nn.ModuleList()
        for layer in range(num_layers):
            time_stride = 2 if factor > 1 else 1
            self.layers.append(MaskedConv2d(1 if layer == 0 else channels, channels, 3, time_stride, 2))
            num_features = -(-num_features // 2)
        self.output = nn.Linear(channels * num_features, output_dim)
        self.output_dim = output_dim

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) -> (B, T', D), (B,)."""
        images = features[:, None]
        for layer in self.layers:
            images, lengths = layer(images, lengths)
            images = images.relu()
        return self.output(images.transpose(1, 2).flatten(2)), lengths
