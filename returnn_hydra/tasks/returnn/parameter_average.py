"""`torch_distributed` with `reduce_type="param"`: every rank trains alone, and from time to time all take the mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from returnn_hydra.batch import Batch, Loss
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.engine.callback import Callback
from returnn_hydra.engine.ranks import Ranks
from returnn_hydra.engine.trainer import Trainer


def average_interval(options: Mapping[str, Any]) -> int | None:
    """After how many updates the parameters are averaged; None: gradients are, in every update.

    Args:
        options: `torch_distributed`, with `reduce_type` and `param_sync_step`, or with one level in `sync`.

    Raises:
        ConfigError: several levels, groups that are not all ranks, or a number that is none.
    """
    levels = options.get("sync")
    if levels is None:
        levels = [{"type": "param" if options.get("reduce_type") == "param" else "grad"}]
        levels[0]["every"] = options.get("param_sync_step", 1)
    if len(levels) != 1 or levels[0].get("group", "world") != "world":
        raise ConfigError(f"torch_distributed.sync={levels!r}: only one level with the group 'world' is supported")
    level = levels[0]
    if level.get("sync_optimizer_state") or options.get("sync_optimizer_state"):
        raise ConfigError("torch_distributed.sync_optimizer_state: the optimizer's state is not averaged")
    if level.get("type") != "param":
        return None
    every = level.get("every", 1)
    if not isinstance(every, int) or every < 1:
        raise ConfigError(f"torch_distributed.param_sync_step={every!r}: expected a number of updates from 1")
    return every


class ParameterAverage(Callback):
    """The mean of all ranks' parameters, after every `every` updates of an epoch and at its end.

    The state of the optimizer stays each rank's own; the first rank's is saved.
    """

    def __init__(self, ranks: Ranks, every: int) -> None:
        self.ranks = ranks
        self.every = every
        self._updates = 0

    def on_epoch_start(self, trainer: Trainer) -> None:
        self._updates = trainer.position.batch

    def on_step_end(self, trainer: Trainer, batch: Batch, losses: Mapping[str, Loss]) -> None:
        self._updates += trainer.updater.at_boundary
        if trainer.updater.at_boundary and self._updates % self.every == 0:
            self.average(trainer.model)

    def on_epoch_trained(self, trainer: Trainer) -> None:
        self.average(trainer.model)

    @torch.no_grad()
    def average(self, model: nn.Module) -> None:
        """All ranks have the mean afterwards."""
        for parameter in model.parameters():
            self.ranks.sum(parameter).div_(self.ranks.size)
