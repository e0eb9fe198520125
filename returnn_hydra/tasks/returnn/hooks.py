"""What a config's functions are told while a training runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from returnn_hydra.batch import Batch, Loss
from returnn_hydra.engine.callback import Callback
from returnn_hydra.engine.records import EpochRecord
from returnn_hydra.engine.trainer import Trainer
from returnn_hydra.frontend.steps import call_with_wanted, user_model
from returnn_hydra.tasks.returnn.recipe import Recipe


class Progress(Callback):
    """Tells the train step how many batches are done."""

    def __init__(self, recipe: Recipe, train_step: Any) -> None:
        self.recipe = recipe
        self.train_step = train_step

    def _tell(self, trainer: Trainer) -> None:
        self.recipe.set_progress(self.train_step, trainer.model, trainer.position.epoch, trainer.updater.step)

    def on_run_start(self, trainer: Trainer) -> None:
        self._tell(trainer)

    def on_epoch_start(self, trainer: Trainer) -> None:
        self._tell(trainer)

    def on_step_end(self, trainer: Trainer, batch: Batch, losses: Mapping[str, Loss]) -> None:
        self._tell(trainer)


class ConfigHooks(Callback):
    """The config's `epoch_start` and `epoch_end`, for the training part of every epoch."""

    def __init__(self, epoch_start: Callable[..., Any] | None, epoch_end: Callable[..., Any] | None) -> None:
        self.epoch_start = epoch_start
        self.epoch_end = epoch_end

    def on_epoch_start(self, trainer: Trainer) -> None:
        _call(self.epoch_start, trainer)

    def on_epoch_end(self, trainer: Trainer, record: EpochRecord) -> None:
        _call(self.epoch_end, trainer)


def _call(function: Callable[..., Any] | None, trainer: Trainer) -> None:
    if function is None:
        return
    epoch, step = trainer.position.epoch, trainer.updater.step
    call_with_wanted(
        function, {"epoch": epoch, "step": step, "model": user_model(trainer.model), "dataset_name": "train"}
    )
