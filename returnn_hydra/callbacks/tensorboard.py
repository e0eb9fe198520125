"""Scores and learning rates for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from returnn_hydra.engine.callback import Callback
from returnn_hydra.engine.records import EpochRecord
from returnn_hydra.engine.trainer import Trainer
from returnn_hydra.extras import require


class TensorBoard(Callback):
    """Writes every score of every epoch into the run's `tensorboard` folder (extra: tensorboard)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tensorboard"
        self._writer: Any = None

    def on_run_start(self, trainer: Trainer) -> None:
        tensorboard = require("torch.utils.tensorboard", "tensorboard", "callbacks.tensorboard")
        self._writer = tensorboard.SummaryWriter(str(self.folder), purge_step=trainer.position.epoch)

    def on_epoch_end(self, trainer: Trainer, record: EpochRecord) -> None:
        assert self._writer is not None
        for name, value in record.means().items():
            self._writer.add_scalar(name, value, record.epoch)
        self._writer.add_scalar("learning_rate", record.learning_rate, record.epoch)
        self._writer.flush()

    def on_run_end(self, trainer: Trainer, error: BaseException | None) -> None:
        if self._writer is not None:
            self._writer.close()
