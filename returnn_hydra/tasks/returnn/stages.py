"""A training whose network or settings change between epochs: which part of it is to be trained with what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from returnn_hydra.config.errors import ConfigError
from returnn_hydra.engine.checkpoint import CheckpointStore
from returnn_hydra.network.schedule import NetworkSchedule, Stage
from returnn_hydra.optim.learning_rate_control import History, LearningRateControl
from returnn_hydra.tasks.returnn.session import Session
from returnn_hydra.tasks.returnn.start import Start

FIXED = ("model", "num_epochs", "task", "device", "learning_rate_file", "extern_data", "random_seed", "load", "network")
"""Keys that `#config` can't change."""


def one_stage(first: int, last: int) -> Stage:
    """Of a model that stays as it is."""
    return Stage(first, last, {}, new_network=True, copy_mode=None, resets_outputs=False)


def check_config(stages: list[Stage], values: Mapping[str, Any]) -> None:
    """
    Raises:
        ConfigError: `#config` of some epoch sets a key that has to stay, or that the config does not have.
    """
    for stage in stages:
        for key in stage.config:
            if key in FIXED:
                raise ConfigError(f"#config of epoch {stage.first}: {key} can't change during a training")
            if key not in values:
                raise ConfigError(f"#config of epoch {stage.first}: set {key} in the config, too: what holds otherwise")


def remaining(session: Session, stages: list[Stage], start: Start) -> list[Stage]:
    """The stages from the one that the training goes on in."""
    epoch = start.epoch
    if start.resume and session.prefix is not None and len(stages) > 1:
        store = CheckpointStore(session.prefix.parent, prefix=session.prefix.name)
        newest = next((manifest for manifest in store.manifests() if store.is_valid(manifest)), None)
        epoch = newest.progress.epoch if newest is not None else epoch
    left = [stage for stage in stages if stage.last >= epoch]
    return left or stages[-1:]


class StageRates(LearningRateControl):
    """The config's rule; over it `#config`, and in a pretraining a constant rate.

    Args:
        rule: for all other epochs.
        schedule_of_networks: knows the pretraining epochs, and the rates in `#config`.
        values: the config: `pretrain_learning_rate`, `learning_rate`, `use_learning_rate_control_always`.
    """

    def __init__(
        self, rule: LearningRateControl, schedule_of_networks: NetworkSchedule, values: Mapping[str, Any]
    ) -> None:
        initial = float(values.get("learning_rate", 1.0))
        super().__init__(learning_rate=initial, score=rule.score, schedule=rule.schedule)
        self.rule = rule
        self.networks = schedule_of_networks
        self.pretrain_rate = float(values.get("pretrain_learning_rate", initial))
        self.always_rule = bool(values.get("use_learning_rate_control_always"))

    def learning_rate(self, epoch: int, history: History) -> float:
        wanted = self.networks.learning_rate(epoch)
        if wanted is not None:
            return float(wanted)
        last = self.networks.num_pretrain_epochs
        if self.always_rule or not last or epoch > last + 1:
            return self.rule.learning_rate(epoch, history)
        return self.pretrain_rate if epoch <= last else self.initial_learning_rate
