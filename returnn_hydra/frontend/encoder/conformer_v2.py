"""The Conformer in two parts: the subsampling frontend and the layers."""

from __future__ import annotations

from typing import Any

from returnn_hydra.frontend.build_from_dict import build_from_dict
from returnn_hydra.frontend.container import Sequential
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.encoder.base import ISeqDownsamplingEncoder, ISeqFramewiseEncoder
from returnn_hydra.frontend.encoder.conformer import (
    ConformerConvSubsample as ConformerConvSubsample,
)
from returnn_hydra.frontend.encoder.conformer import (
    ConformerEncoderLayer as ConformerEncoderLayer,
)
from returnn_hydra.frontend.encoder.conformer import _default_out_dim, _layer_options
from returnn_hydra.frontend.layer_options import make_layers
from returnn_hydra.frontend.linear import Linear
from returnn_hydra.frontend.rand import dropout, dropout_broadcast_default
from returnn_hydra.frontend.tensor import Tensor
from returnn_hydra.frontend.tensor_template import NotSpecified


class ConformerFrontend(ISeqDownsamplingEncoder):
    """Subsampling and projection. Parameters: input_layer, input_projection."""

    def __init__(
        self,
        in_dim: Dim,
        out_dim: Dim = _default_out_dim,
        *,
        input_layer: Any,
        input_embedding_scale: float = 1.0,
        input_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.dropout_broadcast = dropout_broadcast_default()
        if isinstance(input_layer, dict):
            input_layer = build_from_dict(input_layer, in_dim)
        self.input_layer = input_layer
        self.input_projection = Linear(input_layer.out_dim if input_layer else in_dim, out_dim, with_bias=False)
        self.input_embedding_scale = input_embedding_scale
        self.input_dropout = input_dropout

    def __call__(self, source: Tensor, *, in_spatial_dim: Dim) -> tuple[Tensor, Dim]:
        x, dim = (
            self.input_layer(source, in_spatial_dim=in_spatial_dim) if self.input_layer else (source, in_spatial_dim)
        )
        x = self.input_projection(x) * self.input_embedding_scale
        return dropout(x, self.input_dropout, axis=self.dropout_broadcast and self.out_dim), dim


class ConformerEncoderV2(ISeqFramewiseEncoder):
    """The layers. Parameters: layers."""

    def __init__(
        self,
        out_dim: Dim = _default_out_dim,
        *,
        num_layers: int,
        ff_dim: Any = NotSpecified,
        ff_activation: Any = NotSpecified,
        dropout: float = 0.1,
        conv_kernel_size: Any = NotSpecified,
        conv_norm: Any = NotSpecified,
        num_heads: int = 4,
        att_dropout: float = 0.1,
        encoder_layer: Any = None,
        encoder_layer_opts: dict[str, Any] | None = None,
        sequential: Any = Sequential,
    ) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.dropout = dropout
        options = _layer_options(
            out_dim,
            ff_dim,
            ff_activation,
            dropout,
            conv_kernel_size,
            conv_norm,
            num_heads,
            att_dropout,
            encoder_layer_opts,
        )
        self.layers = make_layers(encoder_layer, ConformerEncoderLayer, sequential, num_layers, options)

    def __call__(self, x: Tensor, *, spatial_dim: Dim, collected_outputs: dict[str, Tensor] | None = None) -> Tensor:
        return self.layers(x, spatial_dim=spatial_dim, collected_outputs=collected_outputs)
