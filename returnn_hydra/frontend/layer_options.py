"""What encoder and decoder layers accept as parts: a module, a class, a function, or a dict with "class"."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from returnn_hydra.frontend.build_from_dict import build_from_dict
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.elementwise import gating, identity, relu, silu
from returnn_hydra.frontend.linear import Linear
from returnn_hydra.frontend.module import Module
from returnn_hydra.frontend.rand import dropout, dropout_broadcast_default
from returnn_hydra.frontend.tensor import Tensor
from returnn_hydra.frontend.tensor_template import NotSpecified


def as_dim(value: int | Dim, name: str) -> Dim:
    """An int as a dim."""
    return value if isinstance(value, Dim) else Dim(value, name=name)


def make_norm(norm: Any, out_dim: Dim) -> Any:
    """A normalisation: a class or dict is made for `out_dim`, a module is copied, None and False mean none."""
    if norm is None or norm is False:
        return identity
    if isinstance(norm, Module):
        return copy.deepcopy(norm)
    if isinstance(norm, type):
        return norm(out_dim)
    if isinstance(norm, dict):
        return build_from_dict(norm, out_dim)
    if callable(norm):
        return norm
    raise TypeError(f"norm: expected a class, a dict, a module or a function, not {norm!r}")


def make_activation(activation: Any) -> Any:
    """An activation: a function or module; a dict or class is made."""
    if isinstance(activation, dict):
        return build_from_dict(activation)
    if isinstance(activation, type):
        return activation()
    return activation


class FeedForward(Module):
    """linear, activation, dropout, linear. Parameters: linear_ff, linear_out.

    Args:
        ff_dim: default 4 * out.
    """

    default_activation: Callable[[Tensor], Tensor] = staticmethod(relu)

    def __init__(
        self,
        out_dim: Dim,
        *,
        ff_dim: Any = NotSpecified,
        dropout: float = 0.1,
        activation: Any = NotSpecified,
        with_bias: bool = True,
    ) -> None:
        super().__init__()
        ff_dim = 4 * out_dim if ff_dim is NotSpecified or ff_dim is None else as_dim(ff_dim, "ff-dim")
        self.out_dim = out_dim
        self.dropout = dropout
        self.dropout_broadcast = dropout_broadcast_default()
        self.activation = make_activation(NotSpecified.resolve(activation, type(self).default_activation))
        self.linear_ff = Linear(out_dim, ff_dim, with_bias=with_bias)
        self.linear_out = Linear(ff_dim, out_dim, with_bias=with_bias)

    def __call__(self, inp: Tensor) -> Tensor:
        x = self.activation(self.linear_ff(inp))
        x = dropout(x, self.dropout, axis=self.dropout_broadcast and self.linear_ff.out_dim)
        return self.linear_out(x)


class ConformerPositionwiseFeedForward(FeedForward):
    """The same with swish."""

    default_activation = staticmethod(silu)


class FeedForwardGated(Module):
    """linear, activation(first half) * gate_activation(second half), dropout, linear: SwiGLU by default (Shazeer 2020).

    Args:
        ff_dim: default 8/3 * out, rounded up to a multiple of 256.
    """

    def __init__(
        self,
        out_dim: Dim,
        *,
        ff_dim: Any = NotSpecified,
        dropout: float = 0.1,
        activation: Any = silu,
        gate_activation: Any = identity,
        with_bias: bool = False,
    ) -> None:
        super().__init__()
        if ff_dim is NotSpecified or ff_dim is None:
            ff_dim = -(-(out_dim.get_dim_value() * 4 * 2 // 3) // 256) * 256
        ff_dim = as_dim(ff_dim, "ff-dim")
        self.out_dim = out_dim
        self.dropout = dropout
        self.dropout_broadcast = dropout_broadcast_default()
        self.activation = make_activation(activation)
        self.gate_activation = make_activation(gate_activation)
        self.linear_ff = Linear(out_dim, 2 * ff_dim, with_bias=with_bias)
        self.linear_out = Linear(ff_dim, out_dim, with_bias=with_bias)

    def __call__(self, inp: Tensor) -> Tensor:
        x, ff_dim = gating(
            self.linear_ff(inp),
            act_func=self.activation,
            gate_func=self.gate_activation,
            out_dim=self.linear_out.in_dim,
        )
        x = dropout(x, self.dropout, axis=self.dropout_broadcast and ff_dim)
        return self.linear_out(x)


def make_ff(
    *, out_dim: Dim, ff: Any, ff_dim: Any, ff_activation: Any, dropout: float, default: type = FeedForward
) -> Any:
    """A feed-forward part; a class or dict gets the options that were given."""
    options = {"dropout": dropout}
    if ff_dim is not NotSpecified:
        options["ff_dim"] = ff_dim
    if ff_activation is not NotSpecified:
        options["activation"] = ff_activation
    if ff is NotSpecified:
        return default(out_dim, **options)
    if isinstance(ff, type):
        return ff(out_dim, **options)
    if isinstance(ff, dict):
        return build_from_dict(ff, out_dim, **{k: v for k, v in options.items() if k not in ff})
    if isinstance(ff, Module):
        return copy.deepcopy(ff)
    raise TypeError(f"ff: expected a class, a dict or a module, not {ff!r}")


def make_attention(
    self_att: Any, default: type, in_dim: Dim, num_heads: int, att_dropout: float, extra: dict[str, Any] | None
) -> Any:
    """A self-attention part of a layer."""
    options: dict[str, Any] = {
        "in_dim": in_dim,
        "proj_dim": in_dim,
        "key_dim_total": in_dim,
        "value_dim_total": in_dim,
        "num_heads": num_heads,
        "att_dropout": att_dropout,
        **(extra or {}),
    }
    if self_att is None or self_att is NotSpecified:
        return default(**options)
    if isinstance(self_att, type):
        return self_att(**options)
    if isinstance(self_att, dict):
        return build_from_dict(self_att, **{k: v for k, v in options.items() if k not in self_att})
    if isinstance(self_att, Module):
        return copy.deepcopy(self_att)
    raise TypeError(f"self_att: expected a class, a dict or a module, not {self_att!r}")


def make_layers(layer: Any, default: type, sequential: Any, num_layers: int, options: dict[str, Any]) -> Any:
    """`num_layers` layers in a row; a module given as layer is copied."""
    if layer is None:
        layer = default(**options)
    elif isinstance(layer, type):
        layer = layer(**options)
    elif isinstance(layer, dict):
        layer = build_from_dict(layer, **{k: v for k, v in options.items() if k not in layer})
    elif not callable(layer):
        raise TypeError(f"layer: expected a class, a dict or a module, not {layer!r}")
    copies = [copy.deepcopy(layer) for _ in range(num_layers)]
    return sequential(copies)
