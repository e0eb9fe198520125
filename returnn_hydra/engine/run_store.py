"""What a training run leaves on the disk, and how it goes on from there.

The truth is in the checkpoints: each manifest holds the records of the epochs before it. `scores.jsonl` has the same
records for people and programs, one line per epoch, and spares a resumed run the evaluation of the newest epoch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from returnn_hydra.batch import Batch
from returnn_hydra.engine.bad_batch import save_batch
from returnn_hydra.engine.checkpoint import Checkpoint, CheckpointStore, run_id_of_folder
from returnn_hydra.engine.files import FileSystem
from returnn_hydra.engine.init_params import InitFrom
from returnn_hydra.engine.log import FILES
from returnn_hydra.engine.manifest import Progress
from returnn_hydra.engine.ranks import Ranks
from returnn_hydra.engine.records import EpochRecord
from returnn_hydra.engine.resume import refuse_changes
from returnn_hydra.engine.retention import Retention, RetentionRule
from returnn_hydra.engine.saver import BackgroundSaver
from returnn_hydra.engine.score_file import ScoreFile
from returnn_hydra.engine.signals import StopRequest

if TYPE_CHECKING:
    from returnn_hydra.engine.trainer import Trainer

SCORES_FILE = "scores.jsonl"
GO_ON, SAVE, STOP = range(3)
Item = TypeVar("Item")
RecordWriter = Callable[[Path, Sequence[EpochRecord]], None]
logger = logging.getLogger(__name__)


@dataclass
class RunStore:
    """Checkpoints, scores and stop requests of one run; used as a context manager, with the folder's lock held."""

    folder: Path
    checkpoint_folder: Path | None = None
    """Default: `checkpoints` in the folder."""
    prefix: str = "model"
    """How the names of the checkpoints begin."""
    resume: bool = True
    """Go on from the newest checkpoint; else from the state that the trainer was made with."""
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    """What a resumed run must share, flat: `{"batch_size": 1000, "model.hidden_dim": 64, ...}`."""
    allow_changed: Sequence[str] = ()
    retention: RetentionRule = Retention()
    score: str | None = None
    """Name of the score that `retention` calls best; None: the first of dev."""
    every_steps: int | None = None
    every_minutes: float | None = None
    stop: StopRequest = field(default_factory=StopRequest)
    init_from: Sequence[InitFrom] = ()
    """Where a run that has no checkpoint yet takes parameters from; of two files with a parameter the first wins."""
    writers: Sequence[RecordWriter] = ()
    """Further files with the records of all epochs."""
    disk: FileSystem = field(default_factory=FileSystem)
    ranks: Ranks = Ranks()
    """Only the first rank writes; all of them load."""
    ask_every: int = 10
    """With several ranks: batches between two agreements on whether to stop or to save."""

    def __enter__(self) -> RunStore:
        folder = self.checkpoint_folder or self.folder / "checkpoints"
        own_id = run_id_of_folder(folder, self.disk, self.prefix) if self.ranks.is_first else None
        run_id = self.ranks.broadcast(own_id)
        self.checkpoints = CheckpointStore(folder, run_id, self.fingerprint, self.prefix, disk=self.disk)
        if self.ranks.is_first:
            self.checkpoints.clean_up()
        self.ranks.broadcast(None)
        self.saver = BackgroundSaver(self.checkpoints)
        self.saver.__enter__()
        self.stop.__enter__()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.stop.__exit__(kind, error, trace)
        self.saver.__exit__(kind, error, trace)

    def restore(self, trainer: Trainer) -> None:
        """Load the newest valid checkpoint into the trainer, if there is one.

        Raises:
            ChangedConfigError: it was made with another configuration.
            DamagedStateError: there are checkpoints, but no valid one.
        """
        self.checkpoints.may_be_infinite = [
            name for name, buffer in trainer.model.named_buffers() if not bool(torch.isfinite(buffer).all())
        ]
        checkpoint = self.checkpoints.load_newest(trainer.device) if self.resume else None
        self._saved_at = (time.monotonic(), trainer.updater.num_updates)
        if checkpoint is None:
            self._check_space(trainer)
            for init in reversed(self.init_from):
                init.apply(trainer.model, self.disk)
            logger.info("Starting at epoch %d", trainer.position.epoch)
        else:
            refuse_changes(checkpoint.manifest.fingerprint, self.fingerprint, self.allow_changed)
            self._load(trainer, checkpoint)
        self.stop.immediate = False

    def _check_space(self, trainer: Trainer) -> None:
        """Room for two checkpoints, with the two tensors per parameter that most optimizers keep."""
        model = trainer.model.state_dict()
        self.checkpoints.check_space(model, {"first": model, "second": model})

    def _load(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        progress, state = checkpoint.progress, checkpoint.progress.state
        trainer.model.load_state_dict(checkpoint.model)
        if checkpoint.optimizer is not None:
            trainer.updater.optimizer.load_state_dict(checkpoint.optimizer["optimizer"])
        trainer.updater.load_state_dict(state["updater"])
        if self.ranks.is_first:  # it is the sum over all ranks
            trainer.sums.load_state_dict(state["sums"])
        trainer.records = [EpochRecord.from_json(record) for record in state["records"]]
        for name, callback in trainer.callbacks.items():
            callback.load_state_dict(state["callbacks"].get(name, {}))
        trainer.left_out = [list(entry) for entry in state["left_out"]]
        trainer.position.epoch = progress.epoch
        trainer.position.seconds = state["seconds"]
        if progress.batch is not None:
            trainer.position.batch = progress.batch
            total = trainer.train_data.num_batches(progress.epoch)
            logger.info("Resumed at epoch %d, batch %d of %s", progress.epoch, progress.batch, total)
            return
        trainer.position.trained = True
        saved = read_records(self.folder)
        finished = next((record for record in saved if record.epoch == progress.epoch), None)
        if finished is not None and set(trainer.eval_data) <= set(finished.scores):
            trainer.records.append(finished)
            trainer.start_epoch(progress.epoch + 1)
            if saved != trainer.records and self.ranks.is_first:
                self._write_records(trainer.records)
        if trainer.position.epoch > trainer.num_epochs:
            logger.info("Already trained until epoch %d, nothing to do", progress.epoch)
            self._tidy_up(trainer, last=True)
        elif trainer.position.trained:
            logger.info("Resumed after epoch %d, its evaluation is missing", progress.epoch)
        else:
            logger.info("Resumed after epoch %d, starting epoch %d", progress.epoch, trainer.position.epoch)

    def roll_back(self, trainer: Trainer, error: Exception) -> None:
        """Put the trainer back to the newest valid checkpoint.

        Raises:
            Exception: the given error, when there is no checkpoint yet.
        """
        self.saver.wait()
        checkpoint = self.checkpoints.load_newest(trainer.device)
        if checkpoint is None:
            raise error
        trainer.start_epoch(checkpoint.progress.epoch)
        self._load(trainer, checkpoint)

    def save_batch(self, batch: Batch, number: int) -> Path:
        """Keep a batch that made trouble."""
        return save_batch(self.folder, batch, number, self.disk)

    def save_epoch(self, trainer: Trainer) -> None:
        """The epoch is trained: save it as `model.NNN`, in the background.

        Raises:
            NonFiniteError: a parameter is NaN or infinite; nothing is saved.
        """
        progress = self._progress(trainer, None)
        self._saved_at = (time.monotonic(), trainer.updater.num_updates)
        if not self.ranks.is_first:
            return
        self.saver.save_epoch(progress, trainer.model.state_dict(), _optimizer_state(trainer))
        logger.log(FILES, "Save model and optimizer under %s.*", self.checkpoints.epoch_name(trainer.position.epoch))

    def save_within_epoch(self, trainer: Trainer) -> None:
        """After a batch: save when it is time, or when the run is asked to stop.

        Raises:
            Stopped: after saving, when a signal came or the time is up.
        """
        wish = self._agreed_wish(trainer)
        if wish == GO_ON:
            return
        position = trainer.position
        progress = self._progress(trainer, position.batch)
        if self.ranks.is_first:
            self.saver.save_latest(progress, trainer.model.state_dict(), _optimizer_state(trainer))
        self._saved_at = (time.monotonic(), trainer.updater.num_updates)
        if wish == STOP:
            self.saver.wait()
            total = trainer.train_data.num_batches(position.epoch)
            raise self.stop.stopped(f"epoch {position.epoch}, batch {position.batch} of {total} is saved")

    def until_stopped(self, batches: Iterator[Item], epoch: int) -> Iterator[Item]:
        """The batches of an evaluation.

        Raises:
            Stopped: between two of them, when the run is asked to stop; the trained epoch is saved.
        """
        for batch in batches:
            if self.stop.requested:
                self.saver.wait()
                raise self.stop.stopped(f"epoch {epoch} is saved, its evaluation comes with the next start")
            yield batch

    def save_records(self, trainer: Trainer) -> None:
        """The epoch is evaluated: write the scores, and delete the checkpoints that are no longer needed."""
        if not self.ranks.is_first:
            return
        self.saver.wait()
        self._write_records(trainer.records)
        self._tidy_up(trainer, last=trainer.position.epoch >= trainer.num_epochs)

    def _write_records(self, records: Sequence[EpochRecord]) -> None:
        ScoreFile(self.folder / SCORES_FILE, self.disk).write([record.to_json() for record in records])
        for write in self.writers:
            write(self.folder, records)

    def _tidy_up(self, trainer: Trainer, last: bool) -> None:
        """In the background: delete the checkpoints that are no longer needed."""
        if not self.ranks.is_first:
            return
        scores = {record.epoch: trainer.selection_value(record, self.score) for record in trainer.records}

        def tidy_up() -> None:
            self.retention.apply(self.checkpoints, scores)
            if last:
                self.checkpoints.remove_latest()

        self.saver.submit(tidy_up)

    def wait(self) -> None:
        """Until everything is on the disk."""
        self.saver.wait()

    def _agreed_wish(self, trainer: Trainer) -> int:
        """What to do after this batch: the same on all ranks."""
        if self.ranks.size > 1 and trainer.position.batch % self.ask_every:
            return GO_ON
        wish = STOP if self.stop.requested else SAVE if self._is_due(trainer) else GO_ON
        return self.ranks.largest(wish)

    def _is_due(self, trainer: Trainer) -> bool:
        since, updates = self._saved_at
        by_steps = self.every_steps is not None and trainer.updater.num_updates - updates >= self.every_steps
        by_time = self.every_minutes is not None and time.monotonic() - since >= 60 * self.every_minutes
        return by_steps or by_time

    def _progress(self, trainer: Trainer, batch: int | None) -> Progress:
        rate = trainer.updater.optimizer.param_groups[0]["lr"]
        state = {
            "updater": trainer.updater.state_dict(),
            "sums": {name: [s.sum, s.count] for name, s in self.ranks.merge(trainer.sums.scores()).items()},
            "seconds": trainer.position.seconds,
            "left_out": trainer.left_out,
            "records": [record.to_json() for record in trainer.records],
            "callbacks": {name: callback.state_dict() for name, callback in trainer.callbacks.items()},
        }
        return Progress(trainer.position.epoch, batch, trainer.updater.step, float(rate), state)


def read_records(folder: Path) -> list[EpochRecord]:
    """The records of a run's finished epochs; damaged lines are reported and left out."""
    return [EpochRecord.from_json(record) for record in ScoreFile(folder / SCORES_FILE, FileSystem()).read()]


def _optimizer_state(trainer: Trainer) -> dict[str, Any]:
    """The optimizer in the layout of RETURNN's `.opt.pt`."""
    optimizer = trainer.updater.optimizer
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    return {
        "optimizer": optimizer.state_dict(),
        "optimizer_class_name": type(optimizer).__name__,
        "optimizer_opts": {},
        "param_names": [names[id(p)] for group in optimizer.param_groups for p in group["params"]],
    }
