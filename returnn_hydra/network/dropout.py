"""Dropout with RETURNN's masks: by default one mask over the features, shared by all frames of all sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.axis import Axis
from returnn_hydra.network.axis_strings import AxisFinder
from returnn_hydra.network.errors import NetworkError
from returnn_hydra.network.named_tensor import NamedTensor


def mask_axes(x: NamedTensor, finder: AxisFinder, axis: Any, noise_shape: Any) -> list[Axis]:
    """The axes over which the mask differs; it is shared over all others.

    Args:
        axis: `dropout_axis`, default the features.
        noise_shape: {axis string: None or -1 (differs) or 1 (shared)}, "*" for all that are not named; or a list of
            sizes, batch first.
    """
    if isinstance(noise_shape, Mapping):
        return _by_mapping(x, finder, noise_shape)
    if isinstance(noise_shape, Sequence) and not isinstance(noise_shape, str):
        ordered = x.batch_major().axes
        if len(noise_shape) != len(ordered):
            raise NetworkError(f"{finder.where}: dropout_noise_shape {noise_shape!r} does not fit {list(ordered)}")
        return [a for a, size in zip(ordered, noise_shape, strict=True) if size != 1]
    if noise_shape is not None:
        raise NetworkError(f"{finder.where}: dropout_noise_shape {noise_shape!r} is neither a dict nor a list")
    return finder.all(x, "F" if axis is None else axis)


def _by_mapping(x: NamedTensor, finder: AxisFinder, shape: Mapping[Any, Any]) -> list[Axis]:
    default = shape.get("*", "default")
    differs: dict[Axis, bool] = {}
    for axis in x.axes:
        differs[axis] = axis is x.feature if default == "default" else default in (None, -1)
    for key, size in shape.items():
        if key == "*":
            continue
        keys = list(key) if isinstance(key, (tuple, frozenset)) else key
        for axis in finder.all(x, keys):
            differs[axis] = size != 1
    return [axis for axis in x.axes if differs[axis]]


def drop(x: NamedTensor, rate: float, axes: Sequence[Axis]) -> NamedTensor:
    """Zero entries with probability `rate`, scale the others by 1 / (1 - rate)."""
    return x.dense(x.raw * _mask(x, rate, axes), state=x.state)


def _mask(x: NamedTensor, rate: float, axes: Sequence[Axis]) -> Tensor:
    shape = [axis.size if axis in axes else 1 for axis in x.axes]
    keep = 1.0 - rate
    return torch.empty(shape, device=x.raw.device, dtype=x.raw.dtype).bernoulli_(keep).div_(keep)


def check_rate(rate: Any, where: str) -> float:
    if not isinstance(rate, (int, float)) or not 0.0 <= rate < 1.0:
        raise NetworkError(f"{where}: dropout = {rate!r}, expected a number in [0, 1)")
    return float(rate)
