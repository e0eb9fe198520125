"""Attention. Heads are neighbouring features: weights (in, heads * per head), per head first q, then k, then v."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from returnn_hydra.frontend.ambient import ambient, behavior_at_least
from returnn_hydra.frontend.arrays import concat, expand_dim, merge_dims, replace_dim, split, split_dims
from returnn_hydra.frontend.create import zeros
from returnn_hydra.frontend.dim import Dim, single_step_dim
from returnn_hydra.frontend.elementwise import softmax, where
from returnn_hydra.frontend.init import Glorot
from returnn_hydra.frontend.linear import Linear, matmul
from returnn_hydra.frontend.module import Module
from returnn_hydra.frontend.parameter import Parameter
from returnn_hydra.frontend.positional_encoding import (
    LearnedRelativePositionalEncoding,
    relative_positional_encoding,
    rotary_angles,
)
from returnn_hydra.frontend.rand import dropout
from returnn_hydra.frontend.state import State
from returnn_hydra.frontend.tensor import Tensor

logger = logging.getLogger(__name__)


def _att_dropout_broadcast_default() -> bool:
    """Whether attention dropout shares its mask over all but the attention axis: RETURNN's default below version 19."""
    option = ambient.options.get("rf_att_dropout_broadcast")
    return not behavior_at_least(19) if option is None else bool(option)


def dot_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    key_dim: Dim,
    axis: Dim,
    att_dropout: float = 0.0,
    att_dropout_broadcast: bool | None = None,
    causal_query_spatial_dim: Dim | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(query . keys * scale) . values, the softmax over the frames `axis` of the keys (Vaswani et al. 2017).

    Args:
        scale: default 1 / sqrt(size of key_dim).
        axis: may also be a dim of the query: every query frame sees every key.
        causal_query_spatial_dim: query frames of this dim see only keys up to their own position.
    """
    if axis in query.dims:
        keys, key_axis = replace_dim(keys, in_dim=axis)
        values, _ = replace_dim(values, in_dim=axis, out_dim=key_axis)
        axis = key_axis
    scale = key_dim.get_dim_value() ** -0.5 if scale is None else scale
    energy = matmul(query * scale, keys, reduce=key_dim)
    if causal_query_spatial_dim is not None:
        energy = where(causal_mask(causal_query_spatial_dim, axis, energy), energy, float("-inf"))
    return _attend(energy, values, axis, att_dropout, att_dropout_broadcast)


def causal_mask(query_dim: Dim, key_dim: Dim, like: Tensor) -> Tensor:
    """True where a key is not behind the query; the last query and the last key of a sequence belong together."""
    device = like.device
    offset = key_dim.get_size_tensor(device=device) - query_dim.get_size_tensor(device=device)
    queries = torch.arange(query_dim.get_dim_value(), device=device)[:, None]
    keys = torch.arange(key_dim.get_dim_value(), device=device)
    raw = keys <= queries + offset.raw_tensor[..., None, None]
    return Tensor("causal", dims=[*offset.dims, query_dim, key_dim], dtype="bool", raw_tensor=raw)


def _attend(energy: Tensor, values: Tensor, axis: Dim, att_dropout: float, broadcast: bool | None) -> Tensor:
    weights = softmax(energy, axis=axis)
    broadcast = _att_dropout_broadcast_default() if broadcast is None else broadcast
    weights = dropout(weights, att_dropout, axis=broadcast and axis)
    # Padded keys have weight 0 already.
    out = matmul(weights, values, reduce=axis, use_mask=False)
    out.feature_dim = values.feature_dim if values.feature_dim in out.dims else None
    return out


class _Heads(Module):
    """Sizes and the output projection that all attentions have."""

    def _init_heads(
        self, key_dim_total: Dim, value_dim_total: Dim, num_heads: int | Dim, proj_dim: Dim | None, with_bias: bool,
        att_dropout: float, att_dropout_broadcast: bool | None,
    ) -> None:  # fmt: skip
        if isinstance(num_heads, int):
            num_heads = Dim(num_heads, name="num_heads")
        self.key_dim_total = key_dim_total
        self.key_dim_per_head = key_dim_total.div_left(num_heads)
        self.value_dim_total = value_dim_total
        self.value_dim_per_head = value_dim_total.div_left(num_heads)
        self.num_heads = num_heads
        self.att_dropout = att_dropout
        self.att_dropout_broadcast = (
            _att_dropout_broadcast_default() if att_dropout_broadcast is None else att_dropout_broadcast
        )
        self.proj = Linear(value_dim_total, proj_dim, with_bias=with_bias) if proj_dim else None
        self.out_dim = proj_dim or value_dim_total

    def _output(self, att: Tensor) -> Tensor:
        """Heads side by side again, then the projection."""
        out, _ = merge_dims(att, dims=[self.num_heads, self.value_dim_per_head], out_dim=self.value_dim_total)
        out.feature_dim = self.value_dim_total
        return self.proj(out) if self.proj else out


class SelfAttentionBase(_Heads):
    """q, k, v from one linear map.

    Parameters: qkv.weight, qkv.bias, proj.weight, proj.bias.
    """

    def __init__(
        self,
        in_dim: Dim,
        proj_dim: Dim | None,
        *,
        key_dim_total: Dim,
        value_dim_total: Dim,
        num_heads: int | Dim,
        with_bias: bool = True,
        att_dropout: float = 0.1,
        att_dropout_broadcast: bool | None = None,
    ) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.qkv_dim_total = 2 * key_dim_total + value_dim_total
        self.qkv = Linear(in_dim, self.qkv_dim_total, with_bias=with_bias)
        self._init_heads(
            key_dim_total, value_dim_total, num_heads, proj_dim, with_bias, att_dropout, att_dropout_broadcast
        )
        self.qkv_dim_per_head = 2 * self.key_dim_per_head + self.value_dim_per_head

    def forward_qkv(self, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v: (..., heads, per head)."""
        qkv = split_dims(self.qkv(source), axis=self.qkv_dim_total, dims=[self.num_heads, self.qkv_dim_per_head])
        q, k, v = split(
            qkv,
            axis=self.qkv_dim_per_head,
            out_dims=[self.key_dim_per_head, self.key_dim_per_head, self.value_dim_per_head],
        )
        return q, k, v

    def attention(self, q: Tensor, k: Tensor, v: Tensor, *, kv_axis: Dim) -> Tensor:
        """Attention and output projection."""
        att = dot_attention(
            q,
            k,
            v,
            key_dim=self.key_dim_per_head,
            axis=kv_axis,
            att_dropout=self.att_dropout,
            att_dropout_broadcast=self.att_dropout_broadcast,
        )
        return self._output(att)

    def _keys_of(self, k: Tensor, v: Tensor, axis: Dim) -> tuple[Tensor, Tensor, Dim]:
        """Keys and values with an axis of their own."""
        kv_axis = (
            Dim(None, name=f"{axis.name}-kv") if axis.dimension is None else Dim(axis.dimension, name=f"{axis.name}-kv")
        )
        k, _ = replace_dim(k, in_dim=axis, out_dim=kv_axis)
        v, _ = replace_dim(v, in_dim=axis, out_dim=kv_axis)
        return k, v, kv_axis


class SelfAttention(SelfAttentionBase):
    """Every frame sees every frame."""

    def __call__(self, source: Tensor, *, axis: Dim, **_kwargs: Any) -> Tensor:
        q, k, v = self.forward_qkv(source)
        k, v, kv_axis = self._keys_of(k, v, axis)
        return self.attention(q, k, v, kv_axis=kv_axis)


class CausalSelfAttentionState(State):
    """Keys and values so far, and the dim of their frames."""

    def __init__(self, *_args: Any, k_accum: Any = None, v_accum: Any = None, accum_axis: Any = None) -> None:
        super().__init__(*_args)
        if not _args:
            self.k_accum, self.v_accum, self.accum_axis = k_accum, v_accum, accum_axis


class CausalSelfAttention(SelfAttentionBase):
    """Every frame sees itself and the ones before; also step by step."""

    def __call__(
        self, source: Tensor, axis: Dim, *, state: CausalSelfAttentionState | None = None
    ) -> tuple[Tensor, CausalSelfAttentionState]:
        q, k, v = self.forward_qkv(source)
        k, v, kv_axis, new_state = self._accumulate(k, v, axis, state)
        return self._causal(q, k, v, axis, kv_axis), new_state

    def _causal(self, q: Tensor, k: Tensor, v: Tensor, axis: Dim, kv_axis: Dim) -> Tensor:
        att = dot_attention(
            q,
            k,
            v,
            key_dim=self.key_dim_per_head,
            axis=kv_axis,
            att_dropout=self.att_dropout,
            att_dropout_broadcast=self.att_dropout_broadcast,
            causal_query_spatial_dim=None if axis == single_step_dim else axis,
        )
        return self._output(att)

    def _accumulate(
        self, k: Tensor, v: Tensor, axis: Dim, state: CausalSelfAttentionState | None
    ) -> tuple[Tensor, Tensor, Dim, CausalSelfAttentionState]:
        """Keys and values so far and now, with an axis of their own."""
        if axis == single_step_dim:
            if state is None:
                raise ValueError(f"{type(self).__name__}: a single step needs a state (default_initial_state)")
            k, v, kv_axis = _append_step(k, v, state)
        elif state is not None and state.accum_axis.get_dim_value() > 0:
            old = state.accum_axis
            k, kv_axis = concat((state.k_accum, old), (k, axis))
            v, _ = concat((state.v_accum, old), (v, axis), out_dim=kv_axis)
        else:
            new_state = CausalSelfAttentionState(k_accum=k, v_accum=v, accum_axis=axis)
            return *self._keys_of(k, v, axis), new_state
        return k, v, kv_axis, CausalSelfAttentionState(k_accum=k, v_accum=v, accum_axis=kv_axis)

    def default_initial_state(
        self, *, batch_dims: Sequence[Dim], capacity: int | None = None
    ) -> CausalSelfAttentionState:
        """No frames.

        Args:
            capacity: RETURNN makes room for so many frames; here the state grows with every step, with the same values.
        """
        axis = Dim(0, name="self_att_expand_dim_init")
        device = next(self.parameters()).device
        return CausalSelfAttentionState(
            k_accum=zeros([*batch_dims, axis, self.num_heads, self.key_dim_per_head], device=device),
            v_accum=zeros([*batch_dims, axis, self.num_heads, self.value_dim_per_head], device=device),
            accum_axis=axis,
        )


def _append_step(k: Tensor, v: Tensor, state: CausalSelfAttentionState) -> tuple[Tensor, Tensor, Dim]:
    one = Dim(1, name="step")
    k, axis = concat((state.k_accum, state.accum_axis), (expand_dim(k, one), one), handle_dynamic_dims=None)
    v, _ = concat((state.v_accum, state.accum_axis), (expand_dim(v, one), one), out_dim=axis)
    return k, v, axis


class CrossAttention(_Heads):
    """Decoder frames see encoder frames.

    Parameters: kv.weight, kv.bias, q.weight, q.bias, proj.weight, proj.bias.
    """

    def __init__(
        self,
        encoder_dim: Dim,
        query_in_dim: Dim,
        proj_dim: Dim | None,
        *,
        key_dim_total: Dim,
        value_dim_total: Dim,
        num_heads: int | Dim,
        with_bias: bool = True,
        att_dropout: float = 0.1,
        att_dropout_broadcast: bool | None = None,
    ) -> None:
        super().__init__()
        self.encoder_dim = encoder_dim
        self.query_in_dim = query_in_dim
        self.kv_dim_total = key_dim_total + value_dim_total
        self.kv = Linear(encoder_dim, self.kv_dim_total, with_bias=with_bias)
        self.q = Linear(query_in_dim, key_dim_total, with_bias=with_bias)
        self.kv.weight.initial = Glorot(scale=3 / 4)
        self.q.weight.initial = Glorot(scale=1 / 2)
        self._init_heads(
            key_dim_total, value_dim_total, num_heads, proj_dim, with_bias, att_dropout, att_dropout_broadcast
        )
        self.kv_dim_per_head = self.key_dim_per_head + self.value_dim_per_head

    def transform_encoder(self, encoder: Tensor, *, axis: Dim) -> State:
        """Keys and values of the encoder frames, computed once."""
        k, v = self.forward_kv(encoder)
        return State(k=k, v=v, kv_axis=axis)

    def forward_kv(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """k, v: (..., heads, per head)."""
        kv = split_dims(self.kv(source), axis=self.kv_dim_total, dims=[self.num_heads, self.kv_dim_per_head])
        k, v = split(kv, axis=self.kv_dim_per_head, out_dims=[self.key_dim_per_head, self.value_dim_per_head])
        return k, v

    def forward_query(self, source: Tensor) -> Tensor:
        """q: (..., heads, per head)."""
        return split_dims(self.q(source), axis=self.key_dim_total, dims=[self.num_heads, self.key_dim_per_head])

    def __call__(self, q: Tensor, encoder: State) -> Tensor:
        return self.attention(q=self.forward_query(q), k=encoder.k, v=encoder.v, kv_axis=encoder.kv_axis)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, *, kv_axis: Dim) -> Tensor:
        """Attention and output projection."""
        att = dot_attention(
            q,
            k,
            v,
            key_dim=self.key_dim_per_head,
            axis=kv_axis,
            att_dropout=self.att_dropout,
            att_dropout_broadcast=self.att_dropout_broadcast,
        )
        return self._output(att)


def _apply_rope(x: Tensor, pos_enc: Tensor, feat_dim: Dim) -> Tensor:
    """Rotate neighbouring pairs of features by angles (Su et al. 2021).

    Args:
        pos_enc: (..., feature): sines in the first half of the features, cosines in the second.
    """
    dims = [*(d for d in x.dims if d != feat_dim), feat_dim]
    raw = x.copy_compatible_to_dims_raw(dims)
    angles = pos_enc.copy_compatible_to_dims_raw(dims)
    sine, cosine = angles.chunk(2, dim=-1)
    even, odd = raw[..., 0::2], raw[..., 1::2]
    rotated = torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1).flatten(-2)
    return x._new(dims, rotated).copy_transpose(x.dims)


class RotaryPosSelfAttention(SelfAttention):
    """Self-attention with rotary positions."""

    def __call__(self, source: Tensor, *, axis: Dim, **_kwargs: Any) -> Tensor:
        q, k, v = self.forward_qkv(source)
        angles = rotary_angles(spatial_dim=axis, feat_dim=self.key_dim_per_head, device=source.device)
        q, k = (_apply_rope(t, angles, self.key_dim_per_head) for t in (q, k))
        k, v, kv_axis = self._keys_of(k, v, axis)
        return self.attention(q, k, v, kv_axis=kv_axis)


class RotaryPosCausalSelfAttention(CausalSelfAttention):
    """Causal self-attention with rotary positions."""

    def __call__(
        self, source: Tensor, axis: Dim, *, state: CausalSelfAttentionState | None = None
    ) -> tuple[Tensor, CausalSelfAttentionState]:
        q, k, v = self.forward_qkv(source)
        k, v, kv_axis, new_state = self._accumulate(k, v, axis, state)
        feat = self.key_dim_per_head
        angles = rotary_angles(spatial_dim=kv_axis, feat_dim=feat, device=source.device)
        k = _apply_rope(k, angles, feat)
        offset = kv_axis.get_dim_value() - (1 if axis == single_step_dim else axis.get_dim_value())
        if axis == single_step_dim and kv_axis.need_masking():
            from returnn_hydra.frontend.create import copy_to_device

            lengths = copy_to_device(kv_axis.get_size_tensor(), source.device)
            own = rotary_angles(spatial_dim=single_step_dim, feat_dim=feat, offset=lengths - 1, device=source.device)
        else:
            own = rotary_angles(spatial_dim=axis, feat_dim=feat, offset=offset, device=source.device)
        return self._causal(_apply_rope(q, own, feat), k, v, axis, kv_axis), new_state


def _rel_pos_enc_shift(x: Tensor, axis: Dim, pos_emb_spatial_dim: Dim, hist_dim: Dim) -> Tensor:
    """(..., query, relative position) -> (..., query, key): entry (i, j) is relative position j - i."""
    if axis == single_step_dim:
        out, _ = replace_dim(x, in_dim=pos_emb_spatial_dim, out_dim=hist_dim)
        return out
    dims = [*(d for d in x.dims if d not in (axis, pos_emb_spatial_dim)), axis, pos_emb_spatial_dim]
    raw = x.copy_compatible_to_dims_raw(dims)
    queries, keys = axis.get_dim_value(), hist_dim.get_dim_value()
    device = raw.device
    # The first position is key 0 seen from the last query.
    index = torch.arange(keys, device=device) - torch.arange(queries, device=device)[:, None] + queries - 1
    picked = torch.gather(raw, -1, index.expand(*raw.shape[:-1], keys))
    return Tensor("rel_shift", dims=[*dims[:-1], hist_dim], dtype=x.dtype, raw_tensor=picked)


class _RelPosParts:
    """Relative positions as in Transformer-XL (Dai et al. 2019): parameters and scores.

    Parameters: linear_pos.weight, learned_pos_emb.pos_emb, pos_bias_u, pos_bias_v, as configured.
    """

    in_dim: Dim
    key_dim_total: Dim
    key_dim_per_head: Dim
    num_heads: Dim
    att_dropout: float
    att_dropout_broadcast: bool

    _rel_shift = staticmethod(_rel_pos_enc_shift)

    def _init_positions(
        self, with_linear_pos: bool, with_pos_bias: bool, learnable: bool, clipping: int, per_head: bool,
        pos_emb_dropout: float, causal: bool = False,
    ) -> None:  # fmt: skip
        self.separate_pos_emb_per_head = per_head
        pos_dim = self.key_dim_total if per_head else self.key_dim_per_head
        self.pos_emb_feat_dim = self.in_dim if with_linear_pos else pos_dim
        self.linear_pos = Linear(self.in_dim, pos_dim, with_bias=False) if with_linear_pos else None
        self.learned_pos_emb = (
            LearnedRelativePositionalEncoding(self.pos_emb_feat_dim, clipping=clipping, causal=causal)
            if learnable
            else None
        )
        shape = [self.num_heads, self.key_dim_per_head]
        self.pos_bias_u = Parameter(shape, initial=Glorot()) if with_pos_bias else None
        self.pos_bias_v = Parameter(shape, initial=Glorot()) if with_pos_bias else None
        self.pos_emb_dropout = pos_emb_dropout

    def _positions(self, query_dim: Dim, key_dim: Dim, offset: int, device: str | None) -> tuple[Tensor, Dim]:
        """(2 T - 1, [heads,] per head) embeddings of the relative positions."""
        if self.learned_pos_emb is not None:
            emb, dim = self.learned_pos_emb(
                query_spatial_dim=query_dim, key_value_spatial_dim=key_dim, query_offset=offset
            )
        else:
            emb, dim = relative_positional_encoding(
                query_spatial_dim=query_dim,
                key_value_spatial_dim=key_dim,
                feat_dim=self.pos_emb_feat_dim,
                query_offset=offset,
                device=device,
            )
        emb = dropout(emb, self.pos_emb_dropout)
        if self.linear_pos is not None:
            emb = self.linear_pos(emb)
        if self.separate_pos_emb_per_head:
            emb = split_dims(emb, axis=self.key_dim_total, dims=[self.num_heads, self.key_dim_per_head])
        elif self.key_dim_per_head not in emb.dims:
            emb, _ = replace_dim(emb, in_dim=self.pos_emb_feat_dim, out_dim=self.key_dim_per_head)
        return emb, dim

    def _rel_pos_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        positions: tuple[Tensor, Dim],
        query_dim: Dim,
        kv_axis: Dim,
        causal: bool = False,
    ) -> Tensor:
        emb, pos_dim = positions
        # Read once: every reading of a parameter with weight_dropout draws anew.
        bias_u, bias_v = self.pos_bias_u, self.pos_bias_v
        with_u = q if bias_u is None else q + bias_u
        with_v = q if bias_v is None else q + bias_v
        content = matmul(with_u, k, reduce=self.key_dim_per_head)
        position = matmul(with_v, emb, reduce=self.key_dim_per_head)
        position = self._rel_shift(position, query_dim, pos_dim, kv_axis)
        energy = (content + position) * self.key_dim_per_head.get_dim_value() ** -0.5
        if causal and query_dim != single_step_dim:
            energy = where(causal_mask(query_dim, kv_axis, energy), energy, float("-inf"))
        return _attend(energy, v, kv_axis, self.att_dropout, self.att_dropout_broadcast)


class RelPosSelfAttention(_RelPosParts, SelfAttentionBase):
    """Self-attention with relative positions."""

    def __init__(
        self,
        in_dim: Dim,
        proj_dim: Dim | None,
        *,
        key_dim_total: Dim,
        value_dim_total: Dim,
        num_heads: int | Dim,
        with_bias: bool = True,
        with_linear_pos: bool = True,
        with_pos_bias: bool = True,
        learnable_pos_emb: bool = False,
        learnable_pos_emb_clipping: int = 16,
        separate_pos_emb_per_head: bool = True,
        pos_emb_dropout: float = 0.0,
        att_dropout: float = 0.1,
    ) -> None:
        SelfAttentionBase.__init__(
            self,
            in_dim,
            proj_dim,
            key_dim_total=key_dim_total,
            value_dim_total=value_dim_total,
            num_heads=num_heads,
            with_bias=with_bias,
            att_dropout=att_dropout,
        )
        self._init_positions(
            with_linear_pos,
            with_pos_bias,
            learnable_pos_emb,
            learnable_pos_emb_clipping,
            separate_pos_emb_per_head,
            pos_emb_dropout,
        )

    def __call__(self, source: Tensor, *, axis: Dim, **_kwargs: Any) -> Tensor:
        positions = self._positions(axis, axis, 0, source.device)
        q, k, v = self.forward_qkv(source)
        k, v, kv_axis = self._keys_of(k, v, axis)
        return self._output(self._rel_pos_attention(q, k, v, positions, axis, kv_axis))


class RelPosCausalSelfAttention(_RelPosParts, CausalSelfAttention):
    """Causal self-attention with relative positions."""

    def __init__(
        self,
        in_dim: Dim,
        proj_dim: Dim | None,
        *,
        key_dim_total: Dim,
        value_dim_total: Dim,
        num_heads: int | Dim,
        with_bias: bool = True,
        with_linear_pos: bool = True,
        with_pos_bias: bool = True,
        learnable_pos_emb: bool = False,
        learnable_pos_emb_clipping: int = 16,
        separate_pos_emb_per_head: bool = True,
        pos_emb_dropout: float = 0.0,
        att_dropout: float = 0.1,
    ) -> None:
        CausalSelfAttention.__init__(
            self,
            in_dim,
            proj_dim,
            key_dim_total=key_dim_total,
            value_dim_total=value_dim_total,
            num_heads=num_heads,
            with_bias=with_bias,
            att_dropout=att_dropout,
        )
        self._init_positions(
            with_linear_pos,
            with_pos_bias,
            learnable_pos_emb,
            learnable_pos_emb_clipping,
            separate_pos_emb_per_head,
            pos_emb_dropout,
            causal=True,
        )

    def __call__(
        self, source: Tensor, axis: Dim, *, state: CausalSelfAttentionState | None = None
    ) -> tuple[Tensor, CausalSelfAttentionState]:
        q, k, v = self.forward_qkv(source)
        k, v, kv_axis, new_state = self._accumulate(k, v, axis, state)
        offset = kv_axis.get_dim_value() - (1 if axis == single_step_dim else axis.get_dim_value())
        positions = self._positions(axis, kv_axis, offset, source.device)
        return self._output(self._rel_pos_attention(q, k, v, positions, axis, kv_axis, causal=True)), new_state
