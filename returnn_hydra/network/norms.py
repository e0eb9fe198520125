"""Batch normalisation with RETURNN's running statistics and names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from returnn_hydra.network.named_tensor import NamedTensor

if TYPE_CHECKING:
    from returnn_hydra.network.call import LayerCall

_OLD = {"momentum": 0.99, "update_sample_only_in_training": False, "delay_sample_update": False, "param_version": 0}
_NEW = {"momentum": 0.1, "update_sample_only_in_training": True, "delay_sample_update": True, "param_version": 2}


def batch_norm(
    call: LayerCall,
    x: NamedTensor,
    *,
    use_shift: bool = True,
    use_std: bool = True,
    use_sample: float = 0.0,
    force_sample: bool = False,
    momentum: float | None = None,
    epsilon: float = 1e-3,
    update_sample_only_in_training: bool | None = None,
    delay_sample_update: bool | None = None,
    param_version: int | None = None,
    gamma_init: Any = 1.0,
    beta_init: Any = 0.0,
    masked_time: bool = True,
) -> NamedTensor:
    """Normalise every feature over all other axes.

    `running = running + momentum * (batch - running)`. What is left open follows `behavior_version` (12 changed the
    defaults): before 12, momentum is 0.99 and the statistics are updated also outside of training, before their use.

    Args:
        use_sample: weight of the running statistics in training (0: only the batch's).
        masked_time: statistics over real frames only.
    """
    defaults = _NEW if call.run.user.get("behavior_version", 0) >= 12 else _OLD
    given = {
        "momentum": momentum,
        "update_sample_only_in_training": update_sample_only_in_training,
        "delay_sample_update": delay_sample_update,
        "param_version": param_version,
    }
    chosen: Mapping[str, Any] = {key: defaults[key] if value is None else value for key, value in given.items()}
    feature = call.feature(x)
    names = _Names(call, x, chosen["param_version"])
    mean = names.get("mean", 0.0, buffer=True)
    variance = names.get("variance", 1.0, buffer=True)
    gamma = names.get("gamma", gamma_init) if use_std else None
    beta = names.get("beta", beta_init) if use_shift else None
    from_batch = call.train or force_sample
    update = (call.train or not chosen["update_sample_only_in_training"]) and not call.run.building
    used_mean, used_variance = mean.flatten(), variance.flatten()
    if update or from_batch:
        batch_mean, batch_variance = moments(x, masked_time)
        if update:
            new_mean = used_mean + (batch_mean - used_mean) * chosen["momentum"]
            new_variance = used_variance + (batch_variance - used_variance) * chosen["momentum"]
            with torch.no_grad():
                if not chosen["delay_sample_update"]:
                    used_mean, used_variance = new_mean.detach(), new_variance.detach()
                else:
                    used_mean, used_variance = used_mean.clone(), used_variance.clone()
                mean.copy_(new_mean.view_as(mean))
                variance.copy_(new_variance.view_as(variance))
        if from_batch:
            used_mean = batch_mean if not use_sample else (1 - use_sample) * batch_mean + use_sample * used_mean
            used_variance = (
                batch_variance if not use_sample else (1 - use_sample) * batch_variance + use_sample * used_variance
            )
    shape = [axis.size if axis is feature else 1 for axis in x.axes]
    scale = torch.rsqrt(used_variance + epsilon)
    raw = (x.raw - used_mean.view(shape)) * scale.view(shape)
    if gamma is not None:
        raw = raw * gamma.reshape(shape)
    if beta is not None:
        raw = raw + beta.reshape(shape)
    return x.dense(raw)


class _Names:
    """Parameters under the names of the three versions that RETURNN had."""

    def __init__(self, call: LayerCall, x: NamedTensor, version: int) -> None:
        if version not in (0, 1, 2):
            raise call.error(f"param_version = {version!r}, expected 0, 1 or 2")
        self.call = call
        prefixes = {0: f"{call.name}_{call.name}_output_", 1: "", 2: "v2_"}
        self.prefix = f"batch_norm/{prefixes[version]}"
        visible = [axis for axis in x.batch_major().axes if axis not in call.scope.all_hidden and axis.kind != "beam"]
        feature = call.feature(x)
        size = feature.size
        self.shape = (size,) if version == 2 else tuple(size if axis is feature else 1 for axis in visible)

    def get(self, name: str, init: Any, buffer: bool = False) -> Tensor:
        return self.call.param(self.prefix + name, self.shape, init, buffer=buffer)


def moments(x: NamedTensor, masked: bool) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance per feature, over all other axes, padding left out if `masked`."""
    assert x.feature is not None
    rows, other = x.rows(x.feature)
    dynamic = [axis for axis in other if axis.is_dynamic]
    if not masked or not dynamic:
        return rows.mean(0), rows.var(0, unbiased=False)
    ones = NamedTensor(torch.ones([axis.size for axis in other], device=rows.device, dtype=rows.dtype), other)
    weight = ones.masked(dynamic, 0.0).reshape(-1, 1)
    count = weight.sum().clamp(min=1.0)
    mean = (rows * weight).sum(0) / count
    variance = ((rows - mean).square() * weight).sum(0) / count
    return mean, variance
