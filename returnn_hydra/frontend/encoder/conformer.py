"""Conformer (Gulati et al. 2020): half a feed-forward, self-attention, convolution, half a feed-forward."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from returnn_hydra.frontend.ambient import behavior_at_least
from returnn_hydra.frontend.arrays import expand_dim, merge_dims
from returnn_hydra.frontend.attention import RelPosSelfAttention
from returnn_hydra.frontend.build_from_dict import build_from_dict
from returnn_hydra.frontend.container import ModuleList, Sequential
from returnn_hydra.frontend.conv import Conv1d, Conv2d, make_conv_out_spatial_dims, pool2d
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.elementwise import gating, relu, silu
from returnn_hydra.frontend.encoder.base import ISeqDownsamplingEncoder
from returnn_hydra.frontend.layer_options import (
    ConformerPositionwiseFeedForward as ConformerPositionwiseFeedForward,
)
from returnn_hydra.frontend.layer_options import FeedForward as FeedForward
from returnn_hydra.frontend.layer_options import as_dim, make_attention, make_layers, make_norm
from returnn_hydra.frontend.layer_options import make_ff as _make_ff
from returnn_hydra.frontend.linear import Linear
from returnn_hydra.frontend.module import Module
from returnn_hydra.frontend.normalization import BatchNorm, LayerNorm
from returnn_hydra.frontend.rand import dropout, dropout_broadcast_default
from returnn_hydra.frontend.tensor import Tensor
from returnn_hydra.frontend.tensor_template import NotSpecified

_default_out_dim = Dim(512, name="conformer-enc-default-out-dim")


def conv_norm_use_mask_default() -> bool | None:
    """Whether the batch norm of the convolution leaves out padding: from behaviour version 29 on."""
    return behavior_at_least(29, "rf_conformer_conv_norm_use_mask")


def make_ff(*, out_dim: Dim, ff: Any, ff_dim: Any, ff_activation: Any, dropout: float) -> Any:
    """A feed-forward part; by default with swish."""
    return _make_ff(
        out_dim=out_dim,
        ff=ff,
        ff_dim=ff_dim,
        ff_activation=ff_activation,
        dropout=dropout,
        default=ConformerPositionwiseFeedForward,
    )


class ConformerConvBlock(Module):
    """pointwise, gate, depthwise, norm, swish, pointwise.

    Parameters: positionwise_conv1, depthwise_conv, positionwise_conv2, norm.
    """

    def __init__(self, out_dim: Dim, *, kernel_size: int, norm: Any) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.positionwise_conv1 = Linear(out_dim, 2 * out_dim)
        self.depthwise_conv = Conv1d(
            out_dim, out_dim, filter_size=kernel_size, groups=out_dim.dimension, padding="same"
        )
        self.positionwise_conv2 = Linear(out_dim, out_dim)
        self.norm = norm

    def __call__(self, inp: Tensor, *, spatial_dim: Dim) -> Tensor:
        x, _ = gating(self.positionwise_conv1(inp), out_dim=self.out_dim)
        x, _ = self.depthwise_conv(x, in_spatial_dim=spatial_dim)
        return self.positionwise_conv2(silu(self.norm(x)))


class ConformerConvSubsample(ISeqDownsamplingEncoder):
    """Two-dimensional convolutions over time and features, with pooling; channels and features come out merged.

    Parameters: conv_layers.

    Args:
        out_dims: channels of every layer.
        filter_sizes: (time, feature) of every layer, or one int for both; strides likewise.
        pool_sizes: (time, feature) of the pooling after each of the first layers.
    """

    def __init__(
        self,
        in_dim: Dim,
        *,
        out_dims: Sequence[Dim | int],
        filter_sizes: Sequence[int | tuple[int, int]],
        strides: Sequence[int | tuple[int, int]] | None = None,
        pool_sizes: Sequence[tuple[int, int]] | None = None,
        activation: Callable[[Tensor], Tensor] = relu,
        padding: str = "same",
    ) -> None:
        super().__init__()
        self.pool_sizes = [_pair(size) for size in pool_sizes or []]
        self.activation = activation
        self.padding = padding
        pairs = [_pair(s) for s in strides] if strides is not None else [(1, 1)] * len(out_dims)
        if not len(out_dims) == len(filter_sizes) == len(pairs):
            raise ValueError(
                f"ConformerConvSubsample: {len(out_dims)} out_dims, {len(filter_sizes)} filter_sizes,"
                f" {len(pairs)} strides"
            )
        self.strides = pairs
        self._dummy_in_dim = Dim(1, name="dummy-input-feature-dim")
        self.in_dim = in_dim
        self.conv_layers = ModuleList()
        before = self._dummy_in_dim
        features = in_dim
        for index, (out, size, stride) in enumerate(zip(out_dims, filter_sizes, pairs, strict=True)):
            out = as_dim(out, f"conv{index}")
            self.conv_layers.append(Conv2d(before, out, filter_size=_pair(size), strides=stride, padding=padding))
            (features,) = make_conv_out_spatial_dims(
                [features], filter_size=_pair(size)[1], strides=stride[1], padding=padding
            )
            if index < len(self.pool_sizes):
                (features,) = make_conv_out_spatial_dims(
                    [features], filter_size=self.pool_sizes[index][1], strides=self.pool_sizes[index][1], padding="same"
                )
            before = out
        self._final_feature_dim = features
        self.out_dim = features * before
        self.downsample_factor = 1
        for index, stride in enumerate(pairs):
            self.downsample_factor *= stride[0] * (self.pool_sizes[index][0] if index < len(self.pool_sizes) else 1)

    def get_out_spatial_dim(self, in_spatial_dim: Dim) -> Dim:
        """The time dim that comes out."""
        dim = in_spatial_dim
        for index, layer in enumerate(self.conv_layers):
            (dim,) = make_conv_out_spatial_dims(
                [dim], filter_size=layer.filter_size[0], strides=self.strides[index][0], padding=self.padding
            )
            if index < len(self.pool_sizes):
                size = self.pool_sizes[index][0]
                (dim,) = make_conv_out_spatial_dims([dim], filter_size=size, strides=size, padding="same")
        return dim

    def __call__(self, source: Tensor, *, in_spatial_dim: Dim) -> tuple[Tensor, Dim]:
        dims: Sequence[Dim] = [in_spatial_dim, self.in_dim]
        x = expand_dim(source, dim=self._dummy_in_dim)
        for index, layer in enumerate(self.conv_layers):
            x, dims = layer(x, in_spatial_dims=dims)
            x = self.activation(x)
            if index < len(self.pool_sizes):
                x, dims = pool2d(x, in_spatial_dims=dims, pool_size=self.pool_sizes[index], padding="same", mode="max")
        out, _ = merge_dims(x, dims=[dims[1], self.conv_layers[-1].out_dim], out_dim=self.out_dim)
        out.feature_dim = self.out_dim
        return out, dims[0]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


class ConformerEncoderLayer(Module):
    """One layer.

    Parameters: ffn1, ffn2, conv_block, self_att, their *_layer_norm, final_layer_norm.
    """

    def __init__(
        self,
        out_dim: Dim = _default_out_dim,
        *,
        ff: Any = NotSpecified,
        ff_dim: Any = NotSpecified,
        ff_activation: Any = NotSpecified,
        dropout: float = 0.1,
        conv_kernel_size: int = 32,
        conv_norm: Any = NotSpecified,
        conv_norm_opts: dict[str, Any] | None = None,
        num_heads: int = 4,
        self_att: Any = None,
        self_att_opts: dict[str, Any] | None = None,
        att_dropout: float = 0.1,
        norm: Any = LayerNorm,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.dropout_broadcast = dropout_broadcast_default()
        self.out_dim = out_dim
        ff_options = {
            "out_dim": out_dim,
            "ff": ff,
            "ff_dim": ff_dim,
            "ff_activation": ff_activation,
            "dropout": dropout,
        }
        self.ffn1 = make_ff(**ff_options)
        self.ffn1_layer_norm = make_norm(norm, out_dim)
        self.ffn2 = make_ff(**ff_options)
        self.ffn2_layer_norm = make_norm(norm, out_dim)
        self.conv_block = ConformerConvBlock(
            out_dim, kernel_size=conv_kernel_size, norm=_conv_norm(conv_norm, out_dim, conv_norm_opts)
        )
        self.conv_layer_norm = make_norm(norm, out_dim)
        self.self_att = make_attention(self_att, RelPosSelfAttention, out_dim, num_heads, att_dropout, self_att_opts)
        self.self_att_layer_norm = make_norm(norm, out_dim)
        self.final_layer_norm = make_norm(norm, out_dim)

    def __call__(self, inp: Tensor, *, spatial_dim: Dim) -> Tensor:
        axis = self.dropout_broadcast and self.out_dim
        x = dropout(self.ffn1(self.ffn1_layer_norm(inp)), self.dropout, axis=axis) * 0.5 + inp
        x = dropout(self.self_att(self.self_att_layer_norm(x), axis=spatial_dim), self.dropout, axis=axis) + x
        conv = self.conv_block(self.conv_layer_norm(x), spatial_dim=spatial_dim)
        x = dropout(conv, self.dropout, axis=axis) + x
        x = dropout(self.ffn2(self.ffn2_layer_norm(x)), self.dropout, axis=axis) * 0.5 + x
        return self.final_layer_norm(x)


def _conv_norm(norm: Any, out_dim: Dim, options: dict[str, Any] | None) -> Any:
    options = dict(options or {})
    if norm is NotSpecified or norm is BatchNorm:
        options.setdefault("use_mask", conv_norm_use_mask_default())
        return BatchNorm(out_dim, **options)
    if isinstance(norm, type):
        return norm(out_dim, **options)
    if isinstance(norm, dict):
        if norm.get("class") in ("rf.BatchNorm", "returnn.frontend.BatchNorm") and "use_mask" not in norm:
            options.setdefault("use_mask", conv_norm_use_mask_default())
        return build_from_dict({**norm, **options}, out_dim)
    return copy.deepcopy(norm) if isinstance(norm, Module) else norm


class ConformerEncoder(ISeqDownsamplingEncoder):
    """Subsampling, projection, layers.

    Parameters: input_layer, input_projection, layers.
    """

    def __init__(
        self,
        in_dim: Dim,
        out_dim: Dim | int = _default_out_dim,
        *,
        num_layers: int,
        input_layer: Any,
        input_embedding_scale: float | None = None,
        pos_enc: Any = None,
        input_dropout: float = 0.1,
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
        out_dim = as_dim(out_dim, "conformer-enc-dim")
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.dropout = dropout
        self.dropout_broadcast = dropout_broadcast_default()
        if isinstance(input_layer, dict):
            input_layer = build_from_dict(input_layer, in_dim)
        self.input_layer = input_layer
        self.input_projection = (
            Linear(input_layer.out_dim if input_layer else in_dim, out_dim, with_bias=False)
            if input_layer or in_dim != out_dim
            else None
        )
        self.input_embedding_scale = 1.0 if input_embedding_scale is None else input_embedding_scale
        self.pos_enc = build_from_dict(pos_enc, feat_dim=out_dim) if isinstance(pos_enc, dict) else pos_enc
        self.input_dropout = input_dropout
        self.layers = make_layers(
            encoder_layer,
            ConformerEncoderLayer,
            sequential,
            num_layers,
            _layer_options(
                out_dim,
                ff_dim,
                ff_activation,
                dropout,
                conv_kernel_size,
                conv_norm,
                num_heads,
                att_dropout,
                encoder_layer_opts,
            ),
        )

    @property
    def downsample_factor(self) -> int:  # type: ignore[override]
        return getattr(self.input_layer, "downsample_factor", 1)

    def __call__(
        self, source: Tensor, *, in_spatial_dim: Dim, collected_outputs: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Dim]:
        x, dim = (
            self.input_layer(source, in_spatial_dim=in_spatial_dim) if self.input_layer else (source, in_spatial_dim)
        )
        x = self.input_projection(x) if self.input_projection else x
        x = x * self.input_embedding_scale if self.input_embedding_scale != 1 else x
        if self.pos_enc is not None:
            x = x + self.pos_enc(spatial_dim=dim, feat_dim=self.out_dim)
        x = dropout(x, self.input_dropout, axis=self.dropout_broadcast and self.out_dim)
        return self.layers(x, spatial_dim=dim, collected_outputs=collected_outputs), dim


def _layer_options(
    out_dim: Dim, ff_dim: Any, ff_activation: Any, dropout: float, conv_kernel_size: Any, conv_norm: Any,
    num_heads: int, att_dropout: float, extra: dict[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    optional = {
        "ff_dim": ff_dim, "ff_activation": ff_activation, "conv_kernel_size": conv_kernel_size, "conv_norm": conv_norm,
    }  # fmt: skip
    options = {"out_dim": out_dim, "dropout": dropout, "num_heads": num_heads, "att_dropout": att_dropout}
    return {**options, **{k: v for k, v in optional.items() if v is not NotSpecified}, **(extra or {})}
