"""Transformer decoder and language model (Vaswani et al. 2017), with the normalisation first."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

from returnn_hydra.frontend.ambient import behavior_at_least
from returnn_hydra.frontend.attention import CausalSelfAttention
from returnn_hydra.frontend.build_from_dict import build_from_dict
from returnn_hydra.frontend.container import ModuleList
from returnn_hydra.frontend.create import constant, last_frame_position_of_dim
from returnn_hydra.frontend.dim import Dim, single_step_dim
from returnn_hydra.frontend.indexing import gather
from returnn_hydra.frontend.layer_options import FeedForward as FeedForward
from returnn_hydra.frontend.layer_options import FeedForwardGated as FeedForwardGated
from returnn_hydra.frontend.layer_options import as_dim, make_attention, make_ff, make_layers
from returnn_hydra.frontend.layer_options import make_norm as make_norm
from returnn_hydra.frontend.linear import Embedding, Linear
from returnn_hydra.frontend.module import Module
from returnn_hydra.frontend.normalization import LayerNorm
from returnn_hydra.frontend.positional_encoding import sinusoidal_positional_encoding
from returnn_hydra.frontend.rand import dropout, dropout_broadcast_default
from returnn_hydra.frontend.state import State
from returnn_hydra.frontend.tensor import Tensor
from returnn_hydra.frontend.tensor_template import NotSpecified

_default_dim = Dim(512, name="transformer-dec-default-model-dim")


class TransformerDecoderLayer(Module):
    """Causal self-attention, cross-attention (with an encoder), feed-forward.

    Parameters: self_att, cross_att, ff and their *_layer_norm.
    """

    def __init__(
        self,
        encoder_dim: Dim | None,
        out_dim: Dim = _default_dim,
        *,
        ff: Any = NotSpecified,
        ff_dim: Any = NotSpecified,
        ff_activation: Any = NotSpecified,
        dropout: float = 0.1,
        num_heads: int = 8,
        self_att: Any = None,
        self_att_opts: dict[str, Any] | None = None,
        att_dropout: float = 0.1,
        cross_att: dict[str, Any] | None = None,
        norm: Any = LayerNorm,
    ) -> None:
        super().__init__()
        self.encoder_dim = encoder_dim
        self.dropout = dropout
        self.dropout_broadcast = dropout_broadcast_default()
        self.out_dim = out_dim
        self.ff = make_ff(out_dim=out_dim, ff=ff, ff_dim=ff_dim, ff_activation=ff_activation, dropout=dropout)
        self.ff_layer_norm = make_norm(norm, out_dim)
        self.self_att = make_attention(self_att, CausalSelfAttention, out_dim, num_heads, att_dropout, self_att_opts)
        self.self_att_layer_norm = make_norm(norm, out_dim)
        self.cross_att: Any = None
        self.cross_att_layer_norm: Any = None
        if encoder_dim is not None:
            options = {
                "encoder_dim": encoder_dim,
                "query_in_dim": out_dim,
                "proj_dim": out_dim,
                "key_dim_total": out_dim,
                "value_dim_total": out_dim,
                "num_heads": num_heads,
                "att_dropout": att_dropout,
            }
            self.cross_att = build_from_dict({"class": "rf.CrossAttention", **options, **(cross_att or {})})
            self.cross_att_layer_norm = make_norm(norm, out_dim)

    def default_initial_state(self, *, batch_dims: Sequence[Dim], capacity: int | None = None) -> State:
        """Before the first label."""
        return State(self_att=self.self_att.default_initial_state(batch_dims=batch_dims))

    def transform_encoder(self, encoder: Tensor, *, axis: Dim) -> State:
        """Keys and values of the encoder."""
        return State(cross_att=self.cross_att.transform_encoder(encoder, axis=axis))

    def __call__(
        self, x: Tensor, *, spatial_dim: Dim, state: State, encoder: State | None = None
    ) -> tuple[Tensor, State]:
        axis = self.dropout_broadcast and self.out_dim
        new_state = State()
        attended, new_state.self_att = self.self_att(
            self.self_att_layer_norm(x), axis=spatial_dim, state=state.self_att
        )
        x = dropout(attended, self.dropout, axis=axis) + x
        if self.cross_att is not None:
            if encoder is None:
                raise ValueError("TransformerDecoderLayer: needs `encoder` (transform_encoder)")
            crossed = self.cross_att(self.cross_att_layer_norm(x), encoder.cross_att)
            x = dropout(crossed, self.dropout, axis=axis) + x
        x = dropout(self.ff(self.ff_layer_norm(x)), self.dropout, axis=axis) + x
        return x, new_state


class TransformerDecoder(Module):
    """Embedding, positions, layers, normalisation, logits; a language model without encoder_dim.

    Parameters: input_embedding, input_embedding_proj, pos_enc, layers, final_layer_norm, logits.

    Args:
        share_embedding: the logits use the embedding's weight. Default: from behaviour version 20 on, without
            embed_dim.
        input_embedding_scale: default sqrt(size of the model) from behaviour version 20 on, before 1.
        input_dropout: default `dropout` from behaviour version 20 on, before 0.
    """

    def __init__(
        self,
        encoder_dim: Dim | None,
        vocab_dim: Dim,
        model_dim: Dim | int = _default_dim,
        *,
        num_layers: int,
        ff: Any = NotSpecified,
        ff_dim: Any = NotSpecified,
        ff_activation: Any = NotSpecified,
        pos_enc: Any = sinusoidal_positional_encoding,
        dropout: float = 0.1,
        num_heads: int = 8,
        att_dropout: float = 0.1,
        norm: Any = LayerNorm,
        layer: Any = None,
        layer_opts: dict[str, Any] | None = None,
        embed_dim: Dim | int | None = None,
        share_embedding: bool | None = None,
        input_embedding: bool = True,
        input_embedding_scale: float | None = None,
        input_dropout: float | None = None,
        logits_with_bias: bool = False,
        sequential: Any = ModuleList,
        decoder_layer: Any = None,
        decoder_layer_opts: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        layer = decoder_layer if layer is None else layer
        layer_opts = decoder_layer_opts if layer_opts is None else layer_opts
        model_dim = as_dim(model_dim, "transformer-dec-dim")
        embed_dim = None if embed_dim is None else as_dim(embed_dim, "transformer-dec-embed-dim")
        newer = behavior_at_least(20)
        self.encoder_dim = encoder_dim
        self.vocab_dim = vocab_dim
        self.model_dim = model_dim
        self.embed_dim = embed_dim
        inner = embed_dim or model_dim
        self.input_embedding = Embedding(vocab_dim, inner) if input_embedding else None
        self.input_embedding_proj = Linear(inner, model_dim, with_bias=False) if inner != model_dim else None
        self.pos_enc = _make_pos_enc(pos_enc, model_dim)
        if input_embedding_scale is None:
            input_embedding_scale = model_dim.get_dim_value() ** 0.5 if newer else 1.0
        self.input_embedding_scale = input_embedding_scale
        self.input_dropout = (dropout if newer else 0.0) if input_dropout is None else input_dropout
        self.dropout_broadcast = dropout_broadcast_default()
        self.layers = self._make_layers(
            num_layers, layer, sequential,
            {"ff": ff, "ff_dim": ff_dim, "ff_activation": ff_activation},
            {"dropout": dropout, "num_heads": num_heads, "att_dropout": att_dropout, "norm": norm},
            layer_opts,
        )  # fmt: skip
        self.final_layer_norm = make_norm(norm, model_dim)
        if share_embedding is None:
            share_embedding = newer and inner == model_dim and input_embedding
        if share_embedding and (self.input_embedding is None or inner != model_dim):
            raise ValueError("TransformerDecoder: share_embedding needs an input embedding of the model's size")
        self.logits = Linear(model_dim, vocab_dim, with_bias=logits_with_bias)
        if share_embedding:
            assert self.input_embedding is not None
            self.logits.weight = self.input_embedding.weight

    def _make_layers(
        self, num_layers: int, layer: Any, sequential: Any, parts: dict[str, Any], options: dict[str, Any], extra: Any
    ) -> Any:
        given = {k: v for k, v in parts.items() if v is not NotSpecified}
        options = {"encoder_dim": self.encoder_dim, "out_dim": self.model_dim, **given, **options, **(extra or {})}
        return make_layers(layer, TransformerDecoderLayer, sequential, num_layers, options)

    def default_initial_state(self, *, batch_dims: Sequence[Dim], capacity: int | None = None) -> State:
        """Before the first label."""
        state = State({name: layer.default_initial_state(batch_dims=batch_dims) for name, layer in self.layers.items()})
        state.pos = constant(0, dims=(), dtype="int32", device="cpu")
        return state

    def transform_encoder(self, encoder: Tensor, *, axis: Dim) -> State:
        """Keys and values of the encoder for every layer, computed once."""
        return State({name: layer.transform_encoder(encoder, axis=axis) for name, layer in self.layers.items()})

    def __call__(
        self,
        source: Tensor,
        *,
        spatial_dim: Dim,
        state: State,
        encoder: State | None = None,
        collected_outputs: dict[str, Tensor] | None = None,
        output_only_last_frame: bool = False,
    ) -> tuple[Tensor, State]:
        """(..., T) labels -> (..., T, vocab) logits and the state; one step with single_step_dim."""
        new_state = State()
        x = self._embed(source, spatial_dim, state.pos)
        step = 1 if spatial_dim == single_step_dim else spatial_dim.get_dim_value()
        new_state.pos = state.pos + step
        for name, layer in self.layers.items():
            memory = None if encoder is None else encoder[name]
            x, new_state[name] = layer(x, spatial_dim=spatial_dim, state=state[name], encoder=memory)
            if collected_outputs is not None:
                collected_outputs[name] = x
        if output_only_last_frame and spatial_dim != single_step_dim:
            last = last_frame_position_of_dim(spatial_dim, device=x.device)
            x = gather(x, axis=spatial_dim, indices=last)
        return self.logits(self.final_layer_norm(x)), new_state

    def _embed(self, source: Tensor, spatial_dim: Dim, position: Tensor) -> Tensor:
        x = self.input_embedding(source) if self.input_embedding is not None else source
        x = self.input_embedding_proj(x) if self.input_embedding_proj else x
        x = x * self.input_embedding_scale if self.input_embedding_scale != 1 else x
        if self.pos_enc is not None:
            x = x + self.pos_enc(spatial_dim=spatial_dim, offset=position, device=x.device)
        return dropout(x, self.input_dropout)


def _make_pos_enc(pos_enc: Any, model_dim: Dim) -> Any:
    if pos_enc is None or isinstance(pos_enc, Module):
        return copy.deepcopy(pos_enc)
    if isinstance(pos_enc, dict):
        return build_from_dict(pos_enc, feat_dim=model_dim)
    return functools.partial(pos_enc, feat_dim=model_dim)
