"""Activation functions by name, `2 * sigmoid`, or an expression in `x`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from returnn_hydra.network.errors import NetworkError, nearest
from returnn_hydra.network.expressions import evaluate_expression
from returnn_hydra.network.named_tensor import NamedTensor


class _ClipStraightThrough(torch.autograd.Function):
    """Clip the value, but pass the gradient on unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float | None, high: float | None) -> Tensor:
        return x.clamp(min=low, max=high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


def _clip_straight_through(x: Tensor, low: float | None, high: float | None) -> Tensor:
    return _ClipStraightThrough.apply(x, low, high)


def safe_log(x: Tensor, eps: float = 1e-20) -> Tensor:
    """log(max(x, eps)); the gradient is that of log at the clipped value, never 0."""
    return torch.log(_clip_straight_through(x, eps, None))


def safe_exp(x: Tensor, eps: float = 1e-20) -> Tensor:
    """exp of x clipped to where it is neither 0 nor infinite, |x| <= -log(eps)."""
    return torch.exp(_clip_straight_through(x, math.log(eps), -math.log(eps)))


ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu6": F.relu6,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "gelu2": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu3": F.gelu,
    "swish": F.silu,
    "silu": F.silu,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "exp": torch.exp,
    "log": torch.log,
    "safe_log": safe_log,
    "safe_exp": safe_exp,
    "log_sigmoid": F.logsigmoid,
    "abs": torch.abs,
    "neg": torch.neg,
    "negative": torch.neg,
    "square": torch.square,
    "squared_relu": lambda x: torch.relu(x).square(),
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "sin": torch.sin,
    "cos": torch.cos,
    "angle": torch.angle,
    "sign": torch.sign,
    "round": torch.round,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "log1p": torch.log1p,
    "reciprocal": torch.reciprocal,
    "erf": torch.erf,
    "logical_not": torch.logical_not,
}
OVER_FEATURE: dict[str, Callable[[Tensor, int], Tensor]] = {
    "softmax": lambda x, dim: torch.softmax(x, dim),
    "log_softmax": lambda x, dim: torch.log_softmax(x, dim),
}
KNOWN = {*ELEMENTWISE, *OVER_FEATURE, "identity", "None", "linear"}


def activate(x: NamedTensor, name: Any, where: str) -> NamedTensor:
    """Apply an activation; the result remembers its input, for losses.

    Raises:
        NetworkError: the name is unknown; the message has the nearest one.
    """
    if name is None or name in ("identity", "linear", "None"):
        return x
    if callable(name):
        return x.dense(name(x.raw))
    if not isinstance(name, str):
        raise NetworkError(f"{where}: activation {name!r} is neither a name nor a function")
    key = name.strip()
    if key in OVER_FEATURE:
        if x.feature is None:
            raise NetworkError(f"{where}: activation {key!r} needs a feature axis")
        raw = OVER_FEATURE[key](x.raw, x.index(x.feature))
        return x.dense(raw, before_activation=(key, x))
    if key in ELEMENTWISE:
        return x.dense(ELEMENTWISE[key](x.raw), before_activation=(key, x))
    return x.dense(_composed(x, key, where))


def _composed(x: NamedTensor, text: str, where: str) -> Tensor:
    """`2 * sigmoid` (names of functions) or an expression in x."""
    from returnn_hydra.network.tf_face.namespace import tf_namespace

    axis = x.index(x.feature) if x.feature is not None else -1
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        **ELEMENTWISE,
        **{key: functools.partial(_over, function, axis) for key, function in OVER_FEATURE.items()},
    }
    if "(" not in text:
        parts = [part.strip() for part in text.split("*")]
        if all(part in functions or _is_number(part) for part in parts):
            result: Any = 1.0
            for part in parts:
                result = result * (functions[part](x.raw) if part in functions else float(part))
            return result
        raise NetworkError(f"{where}: activation {text!r} is not supported{nearest(text, KNOWN)}")
    names = {**functions, "x": x.raw, "tf": tf_namespace()}
    return evaluate_expression(text, names, f"{where}: activation")


def _over(function: Callable[[Tensor, int], Tensor], dim: int, x: Tensor) -> Tensor:
    return function(x, dim)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
