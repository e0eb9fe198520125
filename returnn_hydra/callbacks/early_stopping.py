"""Ends a training whose score no longer gets better."""

from __future__ import annotations

import logging

from returnn_hydra.engine.callback import Callback
from returnn_hydra.engine.records import EpochRecord
from returnn_hydra.engine.trainer import Trainer

logger = logging.getLogger(__name__)


class EarlyStopping(Callback):
    """Stops after `patience` epochs without an improvement of at least `min_improvement`.

    Decides from the recorded scores alone, so a resumed run stops where an uninterrupted one does.

    Args:
        score: e.g. dev/ce; default: the run's selection score.
    """

    def __init__(self, patience: int = 10, min_improvement: float = 0.0, score: str | None = None) -> None:
        self.patience = patience
        self.min_improvement = min_improvement
        self.score = score

    def on_run_start(self, trainer: Trainer) -> None:
        self._decide(trainer)

    def on_epoch_end(self, trainer: Trainer, record: EpochRecord) -> None:
        self._decide(trainer)

    def _decide(self, trainer: Trainer) -> None:
        best, best_epoch = float("inf"), 0
        for record in trainer.records:
            value = trainer.selection_value(record, self.score)
            if value < best - self.min_improvement:
                best, best_epoch = value, record.epoch
        if trainer.records and trainer.records[-1].epoch - best_epoch >= self.patience:
            logger.info("Early stopping: no better score than %.6g of epoch %d", best, best_epoch)
            trainer.stopping = True
