"""Initial values of parameters.

Sources: Glorot & Bengio 2010 (fan_avg), He et al. 2015 (fan_in, scale 2). The fans of a convolution's filter (out,
in, kernel...)
are in * kernel and out * kernel; those of a matrix (in, out) are in and out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from returnn_hydra.frontend.ambient import get_default_float_dtype
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.rand import fill_truncated_normal, static_generator
from returnn_hydra.frontend.tensor import Tensor, torch_dtype

_TRUNCATED_STDDEV = 0.87962566103423978
"""Standard deviation of a standard normal distribution cut at +-2."""


class ParamInit:
    """Makes the initial values of a parameter."""

    def __call__(
        self, dims: Sequence[Dim], dtype: str, *, sparse_dim: Any = None, device: Any = None, out: Any = None
    ) -> Tensor:
        raise NotImplementedError


class Normal(ParamInit):
    """Normally distributed around 0; truncated at twice the standard deviation."""

    def __init__(self, stddev: float, *, truncated: bool = True, dtype: str | None = None) -> None:
        self.stddev, self.truncated, self.dtype = stddev, truncated, dtype

    def __call__(
        self, dims: Sequence[Dim], dtype: str, *, sparse_dim: Any = None, device: Any = None, out: Any = None
    ) -> Tensor:
        return _normal(dims, dtype, self.stddev, self.truncated, device)


def _normal(dims: Sequence[Dim], dtype: str, stddev: float, truncated: bool, device: Any) -> Tensor:
    raw = torch.empty([d.get_dim_value() for d in dims], dtype=torch_dtype(dtype), device=device)
    if truncated:
        fill_truncated_normal(raw, 0.0, stddev, -2 * stddev, 2 * stddev, static_generator(raw.device))
    else:
        raw.normal_(0.0, stddev, generator=static_generator(raw.device))
    return Tensor("init", dims=dims, dtype=dtype, raw_tensor=raw)


class VarianceScaling(ParamInit):
    """Variance scale / fan.

    Args:
        mode: fan_in, fan_out or fan_avg.
        distribution: truncated_normal, untruncated_normal (normal), or uniform.

    Raises:
        ValueError: another mode or distribution.
    """

    scale = 1.0
    mode = "fan_in"
    distribution = "truncated_normal"

    def __init__(
        self,
        scale: float | None = None,
        mode: str | None = None,
        distribution: str | None = None,
        dtype: str | None = None,
    ) -> None:
        self.scale = self.scale if scale is None else scale
        self.mode = self.mode if mode is None else mode
        self.distribution = self.distribution if distribution is None else distribution
        self.dtype = dtype or get_default_float_dtype()
        if self.mode not in ("fan_in", "fan_out", "fan_avg"):
            raise ValueError(f"mode '{self.mode}' is none of fan_in, fan_out, fan_avg")
        if self.distribution not in ("truncated_normal", "untruncated_normal", "normal", "uniform"):
            raise ValueError(
                f"distribution '{self.distribution}' is none of truncated_normal, untruncated_normal, uniform"
            )

    def __call__(
        self, dims: Sequence[Dim], dtype: str, *, sparse_dim: Any = None, device: Any = None, out: Any = None
    ) -> Tensor:
        fan_in, fan_out = fans([d.get_dim_value() for d in dims])
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        variance = self.scale / max(1.0, fan)
        if self.distribution == "uniform":
            limit = math.sqrt(3.0 * variance)
            raw = torch.empty([d.get_dim_value() for d in dims], dtype=torch_dtype(dtype), device=device)
            raw.uniform_(-limit, limit, generator=static_generator(raw.device))
            return Tensor("init", dims=dims, dtype=dtype, raw_tensor=raw)
        if self.distribution == "truncated_normal":
            return _normal(dims, dtype, math.sqrt(variance) / _TRUNCATED_STDDEV, True, device)
        return _normal(dims, dtype, math.sqrt(variance), False, device)


def fans(sizes: Sequence[int]) -> tuple[float, float]:
    """(fan_in, fan_out) of a parameter of this shape."""
    if len(sizes) < 1:
        return 1, 1
    if len(sizes) == 1:
        return sizes[0], sizes[0]
    if len(sizes) == 2:
        return sizes[0], sizes[1]
    kernel = math.prod(sizes[2:])
    return sizes[1] * kernel, sizes[0] * kernel


class Glorot(VarianceScaling):
    """Uniform with variance 2 / (fan_in + fan_out)."""

    mode = "fan_avg"
    distribution = "uniform"


class He(VarianceScaling):
    """Truncated normal with variance 2 / fan_in."""

    scale = 2.0


class HeNormal(He):
    """The same."""


class HeUniform(He):
    """Uniform with variance 2 / fan_in."""

    distribution = "uniform"


ParamInitType = Any
