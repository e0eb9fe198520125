"""Which checkpoints are kept: the last, the best by one declared score, and named epochs."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from returnn_hydra.engine.checkpoint import CheckpointStore
from returnn_hydra.engine.errors import StateError

SAFETY = 2
"""So many newest valid checkpoints are never deleted: one may become damaged."""
logger = logging.getLogger(__name__)


class RetentionRule(Protocol):
    """Deletes what is not needed, after every epoch; `scores` are those that Retention takes."""

    def apply(self, store: CheckpointStore, scores: Mapping[int, float]) -> list[int]: ...


@dataclass(frozen=True)
class Retention:
    """All None and empty: everything is kept."""

    keep_last: int | None = None
    keep_best: int | None = None
    keep_epochs: Collection[int] = ()

    @property
    def keeps_all(self) -> bool:
        return self.keep_last is None and self.keep_best is None and not self.keep_epochs

    def to_delete(self, epochs: Collection[int], scores: Mapping[int, float]) -> list[int]:
        """The epochs that nothing asks for, ascending.

        Args:
            epochs: those with a checkpoint.
            scores: epoch to the declared score, lower is better; NaN is worst, and of equal ones the earlier is better.
        """
        if self.keeps_all:
            return []
        ordered = sorted(epochs)
        ranked = sorted((scores[epoch], epoch) for epoch in ordered if not math.isnan(scores.get(epoch, math.nan)))
        keep = set(self.keep_epochs)
        keep.update(ordered[-max(self.keep_last or 0, SAFETY) :])
        keep.update(epoch for _, epoch in ranked[: self.keep_best or 0])
        return [epoch for epoch in ordered if epoch not in keep]

    def apply(self, store: CheckpointStore, scores: Mapping[int, float]) -> list[int]:
        """Delete what is not needed, model, optimizer and manifest together; returns the deleted epochs."""
        if self.keeps_all:
            return []
        return delete_epochs(store, self.to_delete(store.epochs(), scores))


def delete_epochs(store: CheckpointStore, unneeded: Collection[int]) -> list[int]:
    """Delete these epochs as far as that is safe; returns those that are gone.

    The newest checkpoints are read again first: nothing is deleted unless enough of them are valid.
    """
    if not unneeded:
        return []
    safe: list[int] = []
    for epoch in reversed(store.epochs()):
        if _is_valid(store, epoch):
            safe.append(epoch)
        if len(safe) == SAFETY:
            break
    deleted = [epoch for epoch in unneeded if len(safe) == SAFETY and epoch < safe[-1]]
    for epoch in deleted:
        store.remove_epoch(epoch)
    if deleted:
        logger.info("Deleted the checkpoints of epochs %s", ", ".join(map(str, deleted)))
    return deleted


def _is_valid(store: CheckpointStore, epoch: int) -> bool:
    """Damage is reported in the log."""
    try:
        return store.is_valid(store.manifest(store.epoch_name(epoch)))
    except StateError as error:
        logger.error("DAMAGED CHECKPOINT: %s", error)
        return False
