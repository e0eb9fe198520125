"""Initial values of parameters, from the names and expressions that network dicts use."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from returnn_hydra.network.errors import NetworkError, nearest
from returnn_hydra.network.expressions import Namespace, evaluate_expression

Fill = Callable[[tuple[int, ...]], Tensor]


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """Fan-in and fan-out as TensorFlow counts them: (..., in, out), times the receptive field."""
    if len(shape) < 2:
        size = shape[0] if shape else 1
        return size, size
    field = math.prod(shape[:-2])
    return shape[-2] * field, shape[-1] * field


def variance_scaling(
    scale: float = 1.0,
    mode: str = "fan_in",
    distribution: str = "truncated_normal",
    seed: int | None = None,
    dtype: Any = None,
) -> Fill:
    def fill(shape: tuple[int, ...]) -> Tensor:
        fan_in, fan_out = fans(shape)
        sizes = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2.0}
        if mode not in sizes:
            raise NetworkError(f"variance scaling: mode {mode!r} is unknown{nearest(mode, sizes)}")
        variance = scale / max(1.0, sizes[mode])
        if distribution == "uniform":
            limit = math.sqrt(3.0 * variance)
            return torch.empty(shape).uniform_(-limit, limit)
        if distribution == "untruncated_normal":
            return torch.empty(shape).normal_(0.0, math.sqrt(variance))
        if distribution not in ("normal", "truncated_normal"):
            raise NetworkError(f"variance scaling: distribution {distribution!r} is unknown")
        # a normal cut at two deviations has only 0.88 of the deviation
        return _truncated(shape, math.sqrt(variance) / 0.87962566103423978)

    return fill


def _truncated(shape: tuple[int, ...], std: float, mean: float = 0.0) -> Tensor:
    return torch.nn.init.trunc_normal_(torch.empty(shape), mean, std, mean - 2 * std, mean + 2 * std)


def _uniform(minval: float = -0.05, maxval: float = 0.05, seed: int | None = None, dtype: Any = None) -> Fill:
    return lambda shape: torch.empty(shape).uniform_(minval, maxval)


def _normal(mean: float = 0.0, stddev: float = 0.05, seed: int | None = None, dtype: Any = None) -> Fill:
    return lambda shape: torch.empty(shape).normal_(mean, stddev)


def _truncated_normal(mean: float = 0.0, stddev: float = 0.05, seed: int | None = None, dtype: Any = None) -> Fill:
    return lambda shape: _truncated(shape, stddev, mean)


def _orthogonal(gain: float = 1.0, seed: int | None = None, dtype: Any = None) -> Fill:
    return lambda shape: torch.nn.init.orthogonal_(torch.empty(shape), gain)


def _identity(gain: float = 1.0, dtype: Any = None) -> Fill:
    return lambda shape: torch.eye(shape[0], shape[1]) * gain


def _constant(value: float = 0.0, dtype: Any = None) -> Fill:
    return lambda shape: torch.full(shape, float(value))


def _scaled(scale: float, mode: str, distribution: str) -> Callable[..., Fill]:
    def make(seed: int | None = None, dtype: Any = None) -> Fill:
        return variance_scaling(scale, mode, distribution)

    return make


_MAKERS: dict[str, Callable[..., Fill]] = {
    "glorot_uniform": _scaled(1.0, "fan_avg", "uniform"),
    "xavier": _scaled(1.0, "fan_avg", "uniform"),
    "xavier_uniform": _scaled(1.0, "fan_avg", "uniform"),
    "glorot_normal": _scaled(1.0, "fan_avg", "truncated_normal"),
    "xavier_normal": _scaled(1.0, "fan_avg", "truncated_normal"),
    "he_uniform": _scaled(2.0, "fan_in", "uniform"),
    "he_normal": _scaled(2.0, "fan_in", "truncated_normal"),
    "lecun_uniform": _scaled(1.0, "fan_in", "uniform"),
    "lecun_normal": _scaled(1.0, "fan_in", "truncated_normal"),
    "variance_scaling": variance_scaling,
    "random_uniform": _uniform,
    "random_normal": _normal,
    "truncated_normal": _truncated_normal,
    "orthogonal": _orthogonal,
    "identity": _identity,
    "eye": _identity,
    "constant": _constant,
    "zeros": lambda dtype=None: _constant(0.0),
    "zero": lambda dtype=None: _constant(0.0),
    "ones": lambda dtype=None: _constant(1.0),
    "one": lambda dtype=None: _constant(1.0),
}


def _maker(name: str) -> Callable[..., Fill] | None:
    """`variance_scaling_initializer`, `VarianceScaling` and `variance_scaling` are the same."""
    snake = "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")
    return _MAKERS.get(snake.removesuffix("_initializer").removesuffix("_init"))


def initial_values(spec: Any, shape: tuple[int, ...], where: str) -> Tensor:
    """Make the initial value of a parameter.

    Args:
        spec: a number, an array, a name, a call in a string, or {"class": name, **options}.
        shape: of the parameter.
        where: layer and parameter, for messages.
    """
    if spec is None:
        return torch.zeros(shape)
    if isinstance(spec, (int, float)):
        return torch.full(shape, float(spec))
    if isinstance(spec, (list, tuple, np.ndarray, Tensor)):
        array = torch.as_tensor(np.asarray(spec), dtype=torch.float32)
        if tuple(array.shape) != shape and array.numel() != 1:
            raise NetworkError(f"{where}: initial value of shape {tuple(array.shape)}, expected {shape}")
        return array.expand(shape).clone()
    return _fill_of(spec, where)(shape)


def _fill_of(spec: Any, where: str) -> Fill:
    if isinstance(spec, Mapping):
        options = dict(spec)
        name = options.pop("class", "")
        maker = _maker(str(name))
        if maker is None:
            raise NetworkError(f"{where}: initializer {name!r} is not supported{nearest(name, _MAKERS)}")
        return maker(**options)
    if not isinstance(spec, str):
        raise NetworkError(f"{where}: initializer {spec!r} is neither a number, an array, a name nor a dict")
    maker = _maker(spec)
    if maker is not None:
        return maker()
    try:
        number = float(spec)
    except ValueError:
        pass
    else:
        return _constant(number)
    names = {f"{key}{suffix}": value for key, value in _MAKERS.items() for suffix in ("", "_initializer")}
    camel = {"".join(part.capitalize() for part in key.split("_")): value for key, value in _MAKERS.items()}
    namespace: dict[str, Any] = {
        **names,
        **camel,
        "tf": Namespace("tf", {**names, **camel}),
        "numpy": Namespace("numpy", {"sqrt": math.sqrt}),
    }
    namespace["np"] = namespace["numpy"]
    result = evaluate_expression(spec, namespace, f"{where}: initializer")
    return result if callable(result) else _constant(float(result))
