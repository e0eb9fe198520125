"""What a training run leaves on the disk, and how it goes on from there.

The truth is in the checkpoints: each manifest holds the records of the epochs before it. `scores.jsonl` has the same
records for people and programs, one line per epoch, and spares a resumed run the evaluation of the newest epoch.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from returnn_hydra.batch import Batch
from returnn_hydra.data.loader import Loader
from returnn_hydra.engine.bad_batch import save_batch
from returnn_hydra.engine.checkpoint import Checkpoint, CheckpointStore, run_id_of_folder
from returnn_hydra.engine.errors import ChangedConfigError, NoCheckpointError, NonFiniteError, StateReadError
from returnn_hydra.engine.files import FileSystem
from returnn_hydra.engine.init_params import InitFrom
from returnn_hydra.engine.log import FILES
from returnn_hydra.engine.manifest import Progress
from returnn_hydra.engine.other_run import OtherRun
from returnn_hydra.engine.ranks import Ranks
from returnn_hydra.engine.records import EpochRecord
from returnn_hydra.engine.resume import refuse_changes
from returnn_hydra.engine.retention import Retention, RetentionRule
from returnn_hydra.engine.saver import BackgroundSaver
from returnn_hydra.engine.score_file import ScoreFile
from returnn_hydra.engine.signals import StopRequest
from returnn_hydra.engine.training_tensors import load_training_tensors, training_tensors
from returnn_hydra.engine.whole_state import is_sharded

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
    resume_from: OtherRun | None = None
    """Where a run that has no checkpoint yet takes everything from, in place of `init_from`."""
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
        try:
            self.stop.__exit__(kind, error, trace)
        finally:
            self.saver.__exit__(kind, error, trace)

    def restore(self, trainer: Trainer) -> None:
        """Load the newest valid checkpoint into the trainer, if there is one; or that of `resume_from`.

        Raises:
            ChangedConfigError: it was made with another configuration.
            DamagedStateError: there are checkpoints, but no valid one.
            NoCheckpointError: there is none at `resume_from`, or nothing is left to train after it.
        """
        self.checkpoints.may_be_infinite = [
            name for name, buffer in trainer.model.named_buffers() if not bool(torch.isfinite(buffer).all())
        ]
        own = self.checkpoints.load_newest(_reading_device(trainer)) if self.resume else None
        self._refuse_other_files(own)
        if own is None:
            self._check_space(trainer)
        if own is not None:
            self._load(trainer, own, self.folder)
        elif self.resume_from is not None:
            self._load(trainer, *self.resume_from.load(self.disk, _reading_device(trainer)))
            next_epoch = trainer.position.epoch + trainer.position.trained
            if next_epoch > trainer.num_epochs:
                raise NoCheckpointError(
                    f"resume_from={self.resume_from.path}: it is trained until epoch {next_epoch - 1}, "
                    f"and num_epochs={trainer.num_epochs} asks for no more"
                )
        else:
            for init in reversed(self.init_from):
                init.apply(trainer.model, self.disk)
            logger.info("Starting at epoch %d", trainer.position.epoch)
        self._saved_at = (time.monotonic(), trainer.updater.num_updates)
        self.stop.immediate = False

    def _check_space(self, trainer: Trainer) -> None:
        """Room for two checkpoints, with the two tensors per parameter that most optimizers keep."""
        model = trainer.model.state_dict()
        trained = model if trainer.updater.average is not None else {}
        self.checkpoints.check_space(model, {"first": model, "second": model, "trained": trained})

    def _refuse_other_files(self, checkpoint: Checkpoint | None) -> None:
        """
        Raises:
            StateReadError: the ranks don't see the same newest checkpoint.
        """
        found = self.ranks.gather(checkpoint and {"name": checkpoint.manifest.name, **checkpoint.manifest.files})
        for rank, seen in enumerate(found):
            if seen != found[0]:
                names = [other["name"] if other else "no checkpoint" for other in (found[0], seen)]
                raise StateReadError(
                    f"{self.checkpoints.folder}: rank 0 finds {names[0]}, rank {rank} finds {names[1]} or another "
                    "content; all ranks need to see the same files"
                )

    def _load(self, trainer: Trainer, checkpoint: Checkpoint, folder: Path) -> None:
        """Put the trainer where a checkpoint was made; `folder`: of its run, with the scores."""
        refuse_changes(checkpoint.manifest.fingerprint, self.fingerprint, self.allow_changed)
        progress, state = checkpoint.progress, checkpoint.progress.state
        load_training_tensors(trainer.model, trainer.updater, checkpoint)
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
            self._deal_rest(trainer, state)
            total = trainer.train_data.num_batches(progress.epoch)
            logger.info("Resumed at epoch %d, batch %d of %s", progress.epoch, progress.batch, total)
            return
        trainer.position.trained = True
        saved = self.ranks.broadcast(read_records(folder))
        finished = next((record for record in saved if record.epoch == progress.epoch), None)
        if finished is not None and set(trainer.eval_data) <= set(finished.scores):
            trainer.records.append(finished)
            trainer.start_epoch(progress.epoch + 1)
            if (folder != self.folder or saved != trainer.records) and self.ranks.is_first:
                self._write_records(trainer.records)
        if trainer.position.epoch > trainer.num_epochs:
            logger.info("Already trained until epoch %d, nothing to do", progress.epoch)
            self._tidy_up(trainer, last=True)
        elif trainer.position.trained:
            logger.info("Resumed after epoch %d, its evaluation is missing", progress.epoch)
        else:
            logger.info("Resumed after epoch %d, starting epoch %d", progress.epoch, trainer.position.epoch)

    def _deal_rest(self, trainer: Trainer, state: Mapping[str, Any]) -> None:
        """The rest of the epoch, if it was begun with another number of ranks (and that is allowed).

        Raises:
            ChangedConfigError: the data are a stream, of which nothing is known ahead, or deal their files themselves.
        """
        epoch, batch = trainer.position.epoch, trainer.position.batch
        num_ranks = state.get("num_ranks", self.ranks.size)
        trainer.dealt = [list(entry) for entry in state.get("dealt", [])]
        if num_ranks != self.ranks.size:
            trainer.dealt.append([num_ranks, batch])
        data = trainer.train_data
        if not isinstance(data, Loader) or data.world_size != self.ranks.size:
            if trainer.dealt:
                raise ChangedConfigError(
                    f"epoch {epoch} was begun with {num_ranks} ranks, and the rest of such data can't be dealt to "
                    f"{self.ranks.size}: finish the epoch with {num_ranks} ranks"
                )
            return
        data.go_on(epoch, trainer.dealt)
        if num_ranks != self.ranks.size:
            left, report = data.batches(epoch), data.batches(epoch).report
            logger.warning(
                "Epoch %d was begun with %d ranks: %d get the rest, %d batches each (%d cut in two, %d left out)",
                *(epoch, num_ranks, self.ranks.size, len(left) - batch, report.num_split, report.num_left_out),
            )

    def roll_back(self, trainer: Trainer, error: Exception) -> None:
        """Put the trainer back to the newest valid checkpoint.

        Raises:
            Exception: the given error, when there is no checkpoint yet.
        """
        with contextlib.suppress(NonFiniteError):  # going back is the answer to that, too
            self.wait()
        checkpoint, folder = self.checkpoints.load_newest(_reading_device(trainer)), self.folder
        if checkpoint is None and self.resume_from is not None:
            checkpoint, folder = self.resume_from.load(self.disk, _reading_device(trainer))
        if checkpoint is None:
            raise error
        trainer.start_epoch(checkpoint.progress.epoch)
        self._load(trainer, checkpoint, folder)

    def save_batch(self, batch: Batch, number: int) -> Path:
        """Keep a batch that made trouble; every rank has its own."""
        return save_batch(self.folder, batch, number, self.disk, self.ranks.rank)

    def save_epoch(self, trainer: Trainer) -> None:
        """The epoch is trained: save it as `model.NNN`, in the background; what goes wrong there comes with `wait`."""
        progress = self._progress(trainer, None)
        self._saved_at = (time.monotonic(), trainer.updater.num_updates)
        self._save(self.saver.save_epoch, trainer, progress)
        logger.log(FILES, "Save model and optimizer under %s.*", self.checkpoints.epoch_name(trainer.position.epoch))

    def save_within_epoch(self, trainer: Trainer) -> None:
        """After a batch: save when it is time, or when the run is asked to stop.

        Raises:
            Stopped: after saving, when a signal came or the time is up.
        """
        wish = self._agreed_wish(trainer)
        if wish == GO_ON:
            return
        trainer.read_numbers()
        position = trainer.position
        progress = self._progress(trainer, position.batch)
        self._save(self.saver.save_latest, trainer, progress)
        self._saved_at = (time.monotonic(), trainer.updater.num_updates)
        if wish == STOP:
            self.wait()
            total = trainer.train_data.num_batches(position.epoch)
            raise self.stop.stopped(f"epoch {position.epoch}, batch {position.batch} of {total} is saved")

    def _save(self, save: Callable[..., None], trainer: Trainer, progress: Progress) -> None:
        tensors = training_tensors(trainer.model, trainer.updater)
        self._on_first(lambda: save(progress, *tensors))

    def _on_first(self, action: Callable[[], None]) -> None:
        """Only the first rank saves; all others learn of bad numbers in what was to be saved."""
        failure: NonFiniteError | None = None
        if self.ranks.is_first:
            try:
                action()
            except NonFiniteError as error:
                failure = error
        message = self.ranks.broadcast(failure and str(failure))
        if message is not None:
            raise NonFiniteError(message) from failure

    def until_stopped(self, batches: Iterator[Item]) -> Iterator[Item]:
        """The batches of an evaluation, as long as the run is not asked to stop."""
        return itertools.takewhile(lambda _: not self.stop.requested, batches)

    def end_if_stopped(self, epoch: int) -> None:
        """After the batches of an evaluation.

        Raises:
            Stopped: one of the ranks is asked to stop; the trained epoch is saved.
        """
        if self.ranks.largest(int(self.stop.requested)):
            self.wait()
            raise self.stop.stopped(f"epoch {epoch} is saved, its evaluation comes with the next start")

    def save_records(self, trainer: Trainer) -> None:
        """The epoch is evaluated: write the scores, and delete the checkpoints that are no longer needed.

        Raises:
            NonFiniteError: a parameter was NaN or infinite when the epoch was to be saved; nothing is saved.
        """
        self.wait()
        if not self.ranks.is_first:
            return
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
        """Until everything is on the disk, on all ranks.

        Raises:
            NonFiniteError: something in what was to be saved is NaN or infinite; the last checkpoint stays the newest.
            StateWriteError: it could not be written (on the first rank).
        """
        self._on_first(self.saver.wait)

    def _agreed_wish(self, trainer: Trainer) -> int:
        """What to do after this batch: the same on all ranks."""
        since, updates = self._saved_at
        by_steps = self.every_steps is not None and trainer.updater.num_updates - updates >= self.every_steps
        by_time = self.every_minutes is not None and time.monotonic() - since >= 60 * self.every_minutes
        wish = STOP if self.stop.requested else SAVE if by_steps or by_time else GO_ON
        if self.ranks.size > 1 and trainer.position.batch % self.ask_every:
            return SAVE if by_steps else GO_ON  # the only one that all ranks know
        return self.ranks.largest(wish)

    def _progress(self, trainer: Trainer, batch: int | None) -> Progress:
        rate = trainer.updater.optimizer.param_groups[0]["lr"]
        state = {
            "updater": trainer.updater.state_dict(),
            "sums": {name: [s.sum, s.count] for name, s in self.ranks.merge(trainer.sums.scores()).items()},
            "seconds": trainer.position.seconds,
            "left_out": trainer.left_out,
            "num_ranks": self.ranks.size,
            "dealt": trainer.dealt,
            "records": [record.to_json() for record in trainer.records],
            "callbacks": {name: callback.state_dict() for name, callback in trainer.callbacks.items()},
        }
        return Progress(trainer.position.epoch, batch, trainer.updater.step, float(rate), state)


def _reading_device(trainer: Trainer) -> torch.device:
    """Whole tensors may be too large for a device that has a part of each."""
    return torch.device("cpu") if is_sharded(trainer.model) else trainer.device


def read_records(folder: Path) -> list[EpochRecord]:
    """The records of a run's finished epochs; damaged lines are reported and left out."""
    return [EpochRecord.from_json(record) for record in ScoreFile(folder / SCORES_FILE, FileSystem()).read()]
