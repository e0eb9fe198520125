"""E-Branchformer (Kim et al. 2022): self-attention and a convolutional gated MLP side by side, merged."""

from __future__ import annotations

from typing import Any

from returnn_hydra.frontend.arrays import concat
from returnn_hydra.frontend.attention import RelPosSelfAttention
from returnn_hydra.frontend.build_from_dict import build_from_dict
from returnn_hydra.frontend.conv import Conv1d
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.elementwise import gelu, identity
from returnn_hydra.frontend.encoder.conformer import _default_out_dim, make_ff
from returnn_hydra.frontend.layer_options import as_dim, make_activation, make_attention, make_norm
from returnn_hydra.frontend.linear import Linear
from returnn_hydra.frontend.module import Module
from returnn_hydra.frontend.normalization import LayerNorm
from returnn_hydra.frontend.rand import dropout, dropout_broadcast_default
from returnn_hydra.frontend.tensor import Tensor
from returnn_hydra.frontend.tensor_template import NotSpecified


class FeedForwardConvGated(Module):
    """linear, activation, second half * gate_activation(depthwise convolution of the normalised first half), linear.

    Parameters: linear_ff, norm, conv, linear_out.

    Args:
        ff_dim: size of each half; default out * 3.
    """

    def __init__(
        self,
        out_dim: Dim,
        *,
        ff_dim: Any = NotSpecified,
        kernel_size: int = 31,
        dropout: float = 0.1,
        activation: Any = gelu,
        gate_activation: Any = identity,
        with_bias: bool = True,
        norm: Any = LayerNorm,
    ) -> None:
        super().__init__()
        ff_dim = out_dim * 3 if ff_dim is NotSpecified or ff_dim is None else as_dim(ff_dim, "ff-dim")
        self.out_dim = out_dim
        self.ff_dim = ff_dim
        self.dropout = dropout
        self.dropout_broadcast = dropout_broadcast_default()
        self.activation = make_activation(activation)
        self.gate_activation = make_activation(gate_activation)
        self.linear_ff = Linear(out_dim, 2 * ff_dim, with_bias=with_bias)
        self.norm = make_norm(norm, ff_dim)
        self.conv = Conv1d(ff_dim, ff_dim, filter_size=kernel_size, padding="same", groups=ff_dim.dimension)
        self.linear_out = Linear(ff_dim, out_dim, with_bias=with_bias)

    def __call__(self, inp: Tensor, *, spatial_dim: Dim) -> Tensor:
        from returnn_hydra.frontend.arrays import split

        x = self.activation(self.linear_ff(inp))
        gates, values = split(x, axis=self.linear_ff.out_dim, out_dims=[self.ff_dim, self.ff_dim])
        gates, _ = self.conv(self.norm(gates), in_spatial_dim=spatial_dim)
        x = values * self.gate_activation(gates)
        x = dropout(x, self.dropout, axis=self.dropout_broadcast and self.ff_dim)
        return self.linear_out(x)


class Merge(Module):
    """Two branches side by side plus their depthwise convolution, projected.

    Parameters: depthwise_conv_fusion, merge_proj.
    """

    def __init__(self, *, in_dim1: Dim, in_dim2: Dim, out_dim: Dim, merge_conv_kernel: int = 3) -> None:
        super().__init__()
        self.in_dim = in_dim1 + in_dim2
        self.out_dim = out_dim
        self.depthwise_conv_fusion = Conv1d(
            self.in_dim, self.in_dim, filter_size=merge_conv_kernel, padding="same", groups=self.in_dim.dimension
        )
        self.merge_proj = Linear(self.in_dim, out_dim)
        self._in_dims = (in_dim1, in_dim2)

    def __call__(self, x1: Tensor, x2: Tensor, *, spatial_dim: Dim) -> Tensor:
        both, _ = concat((x1, self._in_dims[0]), (x2, self._in_dims[1]), out_dim=self.in_dim)
        fused, _ = self.depthwise_conv_fusion(both, in_spatial_dim=spatial_dim)
        return self.merge_proj(both + fused)


class EBranchformerLayer(Module):
    """One layer; takes the place of ConformerEncoderLayer.

    Parameters: ffn1, ffn2, self_att, cgmlp, their *_layer_norm, merge, final_layer_norm.
    """

    def __init__(
        self,
        out_dim: Dim = _default_out_dim,
        *,
        ff: Any = NotSpecified,
        ff_dim: Any = NotSpecified,
        ff_activation: Any = NotSpecified,
        dropout: float = 0.1,
        num_heads: int = 4,
        self_att: Any = NotSpecified,
        att_dropout: float = 0.1,
        cgmlp: Any = NotSpecified,
        cgmlp_ff_dim: Any = NotSpecified,
        cgmlp_conv_kernel: int = 31,
        merge_conv_kernel: int = 3,
        norm: Any = LayerNorm,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.dropout_broadcast = dropout_broadcast_default()
        self.out_dim = out_dim
        options = {"out_dim": out_dim, "ff": ff, "ff_dim": ff_dim, "ff_activation": ff_activation, "dropout": dropout}
        self.ffn1 = make_ff(**options)
        self.ffn1_layer_norm = make_norm(norm, out_dim)
        self.ffn2 = make_ff(**options)
        self.ffn2_layer_norm = make_norm(norm, out_dim)
        self.self_att = make_attention(self_att, RelPosSelfAttention, out_dim, num_heads, att_dropout, None)
        self.self_att_layer_norm = make_norm(norm, out_dim)
        self.cgmlp = _make_cgmlp(cgmlp, out_dim, cgmlp_ff_dim, cgmlp_conv_kernel, dropout)
        self.cgmlp_layer_norm = make_norm(norm, out_dim)
        self.merge = Merge(in_dim1=out_dim, in_dim2=out_dim, out_dim=out_dim, merge_conv_kernel=merge_conv_kernel)
        self.final_layer_norm = make_norm(norm, out_dim)

    def __call__(self, inp: Tensor, *, spatial_dim: Dim) -> Tensor:
        axis = self.dropout_broadcast and self.out_dim
        x = dropout(self.ffn1(self.ffn1_layer_norm(inp)), self.dropout, axis=axis) * 0.5 + inp
        attended = dropout(self.self_att(self.self_att_layer_norm(x), axis=spatial_dim), self.dropout, axis=axis)
        convolved = dropout(self.cgmlp(self.cgmlp_layer_norm(x), spatial_dim=spatial_dim), self.dropout, axis=axis)
        x = dropout(self.merge(attended, convolved, spatial_dim=spatial_dim), self.dropout, axis=axis) + x
        x = dropout(self.ffn2(self.ffn2_layer_norm(x)), self.dropout, axis=axis) * 0.5 + x
        return self.final_layer_norm(x)


def _make_cgmlp(cgmlp: Any, out_dim: Dim, ff_dim: Any, kernel: int, dropout_prob: float) -> Any:
    options: dict[str, Any] = {"kernel_size": kernel, "dropout": dropout_prob}
    if ff_dim is not NotSpecified:
        options["ff_dim"] = ff_dim
    if isinstance(cgmlp, dict):
        return build_from_dict(cgmlp, out_dim, **{k: v for k, v in options.items() if k not in cgmlp})
    return (FeedForwardConvGated if cgmlp is NotSpecified else cgmlp)(out_dim, **options)
