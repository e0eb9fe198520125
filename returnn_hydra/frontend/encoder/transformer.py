"""Transformer encoder over labels (Vaswani et al. 2017), with the normalisation first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from returnn_hydra.frontend.attention import SelfAttention
from returnn_hydra.frontend.build_from_dict import build_from_dict
from returnn_hydra.frontend.container import Sequential
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.layer_options import FeedForward as FeedForward
from returnn_hydra.frontend.layer_options import as_dim, make_attention, make_ff, make_layers, make_norm
from returnn_hydra.frontend.linear import Embedding, Linear
from returnn_hydra.frontend.module import Module
from returnn_hydra.frontend.normalization import LayerNorm
from returnn_hydra.frontend.positional_encoding import sinusoidal_positional_encoding
from returnn_hydra.frontend.rand import dropout, dropout_broadcast_default
from returnn_hydra.frontend.tensor import Tensor
from returnn_hydra.frontend.tensor_template import NotSpecified

_default_dim = Dim(512, name="transformer-enc-default-model-dim")


class TransformerEncoderLayer(Module):
    """Self-attention and feed-forward. Parameters: self_att, self_att_layer_norm, ff, ff_layer_norm."""

    def __init__(
        self,
        out_dim: Dim = _default_dim,
        *,
        ff: Any = NotSpecified,
        dropout: float = 0.1,
        num_heads: int = 8,
        self_att: Any = None,
        att_dropout: float = 0.1,
        norm: Any = LayerNorm,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.dropout_broadcast = dropout_broadcast_default()
        self.out_dim = out_dim
        self.ff = make_ff(out_dim=out_dim, ff=ff, ff_dim=NotSpecified, ff_activation=NotSpecified, dropout=dropout)
        self.ff_layer_norm = make_norm(norm, out_dim)
        self.self_att = make_attention(self_att, SelfAttention, out_dim, num_heads, att_dropout, None)
        self.self_att_layer_norm = make_norm(norm, out_dim)

    def __call__(self, x: Tensor, *, spatial_dim: Dim) -> Tensor:
        axis = self.dropout_broadcast and self.out_dim
        attended = self.self_att(self.self_att_layer_norm(x), axis=spatial_dim)
        x = dropout(attended, self.dropout, axis=axis) + x
        return dropout(self.ff(self.ff_layer_norm(x)), self.dropout, axis=axis) + x


class TransformerEncoder(Module):
    """Embedding, positions, layers, normalisation.

    Parameters: input_embedding, input_embedding_proj, layers, final_layer_norm.

    Args:
        input_embedding_scale: default sqrt(size of the embedding).
    """

    def __init__(
        self,
        vocab_dim: Dim,
        model_dim: Dim | int = _default_dim,
        *,
        num_layers: int,
        ff: Any = NotSpecified,
        pos_enc: Any = sinusoidal_positional_encoding,
        dropout: float = 0.1,
        num_heads: int = 8,
        att_dropout: float = 0.1,
        norm: Any = LayerNorm,
        layer: Any = None,
        layer_opts: dict[str, Any] | None = None,
        embed_dim: Dim | None = None,
        input_embedding: Any = Embedding,
        input_embedding_scale: float | None = None,
        input_dropout: float | None = None,
        sequential: Any = Sequential,
    ) -> None:
        super().__init__()
        model_dim = as_dim(model_dim, "transformer-enc-dim")
        self.vocab_dim = vocab_dim
        self.model_dim = self.out_dim = model_dim
        self.embed_dim = embed_dim
        inner = embed_dim or model_dim
        if isinstance(input_embedding, dict):
            input_embedding = build_from_dict(input_embedding, vocab_dim, inner)
        elif isinstance(input_embedding, type):
            input_embedding = input_embedding(vocab_dim, inner)
        self.input_embedding = input_embedding
        self.input_embedding_proj = Linear(inner, model_dim, with_bias=False) if inner != model_dim else None
        self.pos_enc = build_from_dict(pos_enc, feat_dim=model_dim) if isinstance(pos_enc, dict) else pos_enc
        size = model_dim.get_dim_value()
        self.input_embedding_scale = size**0.5 if input_embedding_scale is None else input_embedding_scale
        self.input_dropout = dropout if input_dropout is None else input_dropout
        self.dropout_broadcast = dropout_broadcast_default()
        options = {
            "out_dim": model_dim, "dropout": dropout, "num_heads": num_heads, "att_dropout": att_dropout, "norm": norm,
        }  # fmt: skip
        if ff is not NotSpecified:
            options["ff"] = ff
        self.layers = make_layers(
            layer, TransformerEncoderLayer, sequential, num_layers, {**options, **(layer_opts or {})}
        )
        self.final_layer_norm = make_norm(norm, model_dim)

    def default_initial_state(self, *, batch_dims: Sequence[Dim]) -> None:
        """An encoder has no steps."""
        return

    def __call__(
        self, source: Tensor, *, spatial_dim: Dim, collected_outputs: dict[str, Tensor] | None = None
    ) -> Tensor:
        x = self.input_embedding(source) if self.input_embedding is not None else source
        x = self.input_embedding_proj(x) if self.input_embedding_proj else x
        x = x * self.input_embedding_scale
        if self.pos_enc is not None:
            x = x + self.pos_enc(spatial_dim=spatial_dim, feat_dim=self.model_dim, device=x.device)
        x = dropout(x, self.input_dropout)
        x = self.layers(x, spatial_dim=spatial_dim, collected_outputs=collected_outputs)
        return self.final_layer_norm(x)
