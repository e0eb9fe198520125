"""Trains a model, epoch by epoch: a checkpoint, the scores and the next learning rate after each."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from returnn_hydra.batch import Batch, Loss, sum_losses
from returnn_hydra.data.loader import Loader
from returnn_hydra.data.stream_loader import StreamLoader
from returnn_hydra.engine.bad_batch import describe_batch, naming
from returnn_hydra.engine.callback import Callback
from returnn_hydra.engine.check_batch import try_batch
from returnn_hydra.engine.device import seed_everything
from returnn_hydra.engine.errors import NonFiniteError, OutOfMemoryError, is_out_of_memory
from returnn_hydra.engine.evaluator import TrainStep, checked, evaluate
from returnn_hydra.engine.parallel import ParallelStep
from returnn_hydra.engine.ranks import Ranks
from returnn_hydra.engine.records import EpochRecord
from returnn_hydra.engine.run_store import RunStore
from returnn_hydra.engine.scores import Score, ScoreSums
from returnn_hydra.engine.updater import Updater
from returnn_hydra.optim.learning_rate_control import LearningRateControl, choose_score

logger = logging.getLogger(__name__)


@dataclass
class Position:
    """How far the run is."""

    epoch: int = 1
    """The epoch to work on, counted from 1."""
    batch: int = 0
    """Batches of this epoch that are done."""
    trained: bool = False
    """All batches of this epoch are done and saved; the evaluation may be missing."""
    seconds: float = 0.0
    """Time spent on the epoch's batches so far."""


@dataclass
class Trainer:
    """The parts of a training run, and the loop over them."""

    model: nn.Module
    train_step: TrainStep
    updater: Updater
    control: LearningRateControl
    train_data: Loader | StreamLoader
    eval_data: Mapping[str, Loader | StreamLoader]
    store: RunStore
    device: torch.device
    num_epochs: int
    seed: int = 1
    ranks: Ranks = Ranks()
    callbacks: Mapping[str, Callback] = field(default_factory=dict)
    position: Position = field(default_factory=Position)
    records: list[EpochRecord] = field(default_factory=list)
    sums: ScoreSums = field(default_factory=ScoreSums)
    left_out: list[list[int]] = field(default_factory=list)
    """(epoch, batch) of batches that gave bad numbers and are not used."""
    dealt: list[list[int]] = field(default_factory=list)
    """(ranks, batches of each that were done) for every other number of ranks that the epoch was trained with."""
    seeds_torch: bool = True
    """Seed torch's generators, too, before every batch; False: a callback seeds them."""
    on_oom: str = "stop"
    """What to do with a batch that does not fit into memory: stop, or split it."""
    check_batch: bool = False
    """Before an epoch, see whether its largest batch fits into memory."""
    log_every: int = 10
    """Batches between two looks at the losses, where a look is a wait for the device."""
    stopping: bool = False
    """Set by a callback that wants no further epoch."""

    def __post_init__(self) -> None:
        self._unread: list[tuple[int, int, Batch | None]] = []
        """(updates done, number, batch if it may be needed) of the batches whose losses nobody looked at yet."""

    def run(self) -> list[EpochRecord]:
        """Train up to `num_epochs`; returns the records of all epochs, earlier processes' included."""
        error: BaseException | None = None
        try:
            self.store.restore(self)
            self.notify("on_run_start")
            while self.position.epoch <= self.num_epochs and not self.stopping:
                try:
                    self.run_epoch()
                except NonFiniteError as bad_numbers:
                    self.roll_back(bad_numbers)
            self.store.wait()
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.notify("on_run_end", error)
        return self.records

    def run_epoch(self) -> None:
        """Train the epoch from where it stands, save, evaluate, record."""
        epoch = self.position.epoch
        learning_rate = self.ranks.broadcast(self.control.learning_rate(epoch, self.history()))
        if not self.position.trained:
            self.notify("on_epoch_start")
            if self.check_batch:
                self.try_largest_batch(epoch)
            self.train_epoch(epoch, learning_rate)
            self.notify("on_epoch_trained")
            self.position.trained = True
            self.store.save_epoch(self)
        record = self.evaluate_epoch(epoch, learning_rate)
        self.records.append(record)
        self.store.save_records(self)
        self.notify("on_epoch_end", record)
        self.stopping = self.ranks.broadcast(self.stopping)  # callbacks are the first rank's
        self.start_epoch(epoch + 1)

    def roll_back(self, error: NonFiniteError) -> None:
        """Go back to the last checkpoint, and leave the batch out the next time; or raise the error, by the rules."""
        rules = self.updater.rules
        if rules.on_nonfinite != "rollback" or len(self.left_out) >= rules.max_consecutive_nonfinite:
            raise error
        left_out = [*self.left_out, [self.position.epoch, self.position.batch]]
        logger.warning("%s", error)
        self.updater.forget()
        self.store.roll_back(self, error)
        self.left_out = left_out  # the checkpoint may know fewer of them

    def start_epoch(self, epoch: int) -> None:
        """The epoch before is done and recorded."""
        self.position = Position(epoch)
        self.sums = ScoreSums()
        self._unread = []
        self.dealt = []

    def try_largest_batch(self, epoch: int) -> None:
        """Forward and backward with the largest batch of the epoch; nothing is changed.

        Raises:
            OutOfMemoryError: it does not fit, and the rules say to stop.
        """
        number = self.train_data.largest_batch(epoch)
        if number is None:
            logger.warning("debug.check_batch: the sizes of the batches are not known before they are read")
            return
        self.model.train()
        batches = self.train_data.epoch(epoch, start=number)
        batch = next(batches)
        batches.close()  # type: ignore[attr-defined]
        parallel = self.train_step if isinstance(self.train_step, ParallelStep) else None
        try:
            with parallel.without_sync() if parallel else nullcontext():
                try_batch(self.model, self.train_step, self.updater, batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = self._too_large(batch, number)
            if self.on_oom == "stop":
                raise failure from error
            logger.warning("The largest batch will be split: %s", failure)
        else:
            logger.info("The largest batch of epoch %d fits: number %d, %s", epoch, number, describe_batch(batch))

    def _too_large(self, batch: Batch, number: int) -> OutOfMemoryError:
        return OutOfMemoryError(
            f"epoch {self.position.epoch}, batch {number}: out of memory with "
            f"{describe_batch(batch)}; use a smaller batch_size{', or on_oom=split' if self.ranks.size == 1 else ''}"
        )

    def train_epoch(self, epoch: int, learning_rate: float) -> None:
        """All batches that are left of the epoch."""
        started = time.monotonic() - self.position.seconds
        num_batches = self.train_data.num_batches(epoch)
        self.model.train()
        batches = self.train_data.epoch(epoch, start=self.position.batch)
        for batch in batches if num_batches is not None else self.ranks.while_all_have(batches):
            epochs_done = self.epochs_done(num_batches)
            seeded = self.device if self.seeds_torch else None
            seed_everything(seeded, self.seed, epoch, self.position.batch, self.ranks.rank)
            self.set_learning_rate(epochs_done, learning_rate)
            if [epoch, self.position.batch] in self.left_out:
                self.position.batch += 1
                continue
            self.updater.start_batch(epoch, epochs_done)
            losses = self.train_batch(batch, is_last=self.position.batch + 1 == num_batches)
            self.sums.add(losses)
            kept = batch if self.updater.defers_checks else None
            self._unread.append((self.updater.num_updates, self.position.batch, kept))
            self.position.batch += 1
            if len(self._unread) >= self.log_every:
                self.read_numbers()
            self.position.seconds = time.monotonic() - started
            self.notify("on_step_end", batch, losses)
            if self.updater.at_boundary:
                self.store.save_within_epoch(self)
        if num_batches is None and self.ranks.size > 1 and not self.updater.at_boundary:
            logger.warning(
                "The last batches of a stream make no update: the ranks did not know that they were the last"
            )
            self.updater.forget()
        self.updater.end_epoch()
        self.read_numbers()

    def read_numbers(self) -> None:
        """Take the losses off the device, and see that all updates since the last time were good.

        Raises:
            NonFiniteError: one was not; its batch is saved for a replay.
        """
        unread, self._unread = self._unread, []
        try:
            self.updater.check()
        except NonFiniteError as error:
            completing = (entry for entry in unread if entry[0] == error.update)
            _, number, batch = next(completing, unread[-1] if unread else (0, 0, None))
            if batch is None:
                raise
            raise self._with_batch(error, batch, number) from error
        self.sums.read()

    def train_batch(self, batch: Batch, is_last: bool) -> Mapping[str, Loss]:
        """Losses of one batch, and the update if this batch completes one.

        Raises:
            NonFiniteError: the loss or the gradient is bad; the batch is saved for a replay.
            OutOfMemoryError: it does not fit into memory, and the rules say to stop, or it is one sequence.
        """
        try:
            return self._train_on(batch, is_last)
        except NonFiniteError as error:
            raise self._with_batch(error, batch, self.position.batch) from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            fits = self.on_oom == "split" and batch.num_seqs > 1 and not self.updater.accumulates
            if not fits or self.ranks.size > 1:
                raise self._too_large(batch, self.position.batch) from error
        self.updater.forget()
        return self._train_in_parts(batch, is_last)

    def _with_batch(self, error: NonFiniteError, batch: Batch, number: int) -> NonFiniteError:
        file = self.store.save_batch(batch, number)
        return NonFiniteError(f"{error}. The batch is in {file}: task=replay runs it again")

    def _train_on(self, batch: Batch, is_last: bool, parts_to_come: int | None = None) -> Mapping[str, Loss]:
        parallel = self.train_step if isinstance(self.train_step, ParallelStep) else None
        waits = parallel is not None and not self.updater.is_last_of_update(is_last)
        with parallel.without_sync() if parallel and waits else nullcontext():
            with naming(batch), self.updater.autocast():
                losses = checked(self.train_step(self.model, batch.to(self.device)))
            self.updater.update(losses, batch.seq_tags, is_last, parts_to_come)
        return losses

    def _train_in_parts(self, batch: Batch, is_last: bool) -> Mapping[str, Loss]:
        """The same update from two halves of the batch, and from halves of these as long as they don't fit."""
        parts = [batch]
        while True:
            parts = [half for part in parts for half in part.halves()]
            logger.warning("out of memory with %s: going on in %d parts", describe_batch(batch), len(parts))
            try:
                results = [self._train_on(part, is_last, len(parts) - 1 - index) for index, part in enumerate(parts)]
                return {name: sum_losses([losses[name] for losses in results]) for name in results[0]}
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self.updater.forget()
                if len(parts) >= batch.num_seqs:
                    raise OutOfMemoryError(f"out of memory with one sequence: {describe_batch(parts[0])}") from error

    def evaluate_epoch(self, epoch: int, learning_rate: float) -> EpochRecord:
        """The scores of the epoch on every data set."""
        scores: dict[str, dict[str, Score]] = {"train": self.ranks.merge(self.sums.scores())}
        self.ranks.broadcast_buffers(self.model)
        seconds = {"train": self.position.seconds}
        for name, data in self.eval_data.items():
            started = time.monotonic()
            batches = self.store.until_stopped(data.epoch(epoch))
            self.notify("on_evaluation_start", name)
            with self.updater.averaged(), self.evaluating():
                part = evaluate(self.model, self.train_step, batches, self.device, self.updater.autocast)
            self.store.end_if_stopped(epoch)
            self.notify("on_evaluation_end", name)
            scores[name] = self.ranks.merge(part)
            seconds[name] = time.monotonic() - started
        statistics = dict(self.train_data.statistics(epoch))
        if self.position.seconds > 0:
            statistics["frames_per_second"] = round(statistics["num_frames"] / self.position.seconds, 1)
        return EpochRecord(epoch, learning_rate, scores, self.updater.step, seconds, statistics)

    def evaluating(self) -> AbstractContextManager[None]:
        """Around an evaluation: every rank has another number of batches."""
        return self.train_step.evaluating() if isinstance(self.train_step, ParallelStep) else nullcontext()

    def set_learning_rate(self, epochs_done: float, learning_rate: float) -> None:
        """Give the optimizer the rate of the coming step; a group's multiplier applies on top."""
        rate = self.control.step_learning_rate(self.updater.step, epochs_done, learning_rate)
        for group in self.updater.optimizer.param_groups:
            group["lr"] = rate * group.get("learning_rate_multiplier", 1.0)

    def epochs_done(self, num_batches: int | None) -> float:
        """Finished epochs, and the finished part of the running one's sequences, if their number is known."""
        epoch, batch = self.position.epoch, self.position.batch
        data = self.train_data
        return epoch - 1 + (data.part_done(epoch, batch) if isinstance(data, Loader) and num_batches else 0.0)

    def selection_value(self, record: EpochRecord, score: str | None) -> float:
        """The value of the score that decides what is best.

        Raises:
            UnknownScore: there is no such score.
        """
        means = record.means()
        return means[choose_score(score, means) or ""]

    def history(self) -> list[tuple[float, dict[str, float]]]:
        """(learning rate, scores) of every finished epoch."""
        return [(record.learning_rate, record.means()) for record in self.records]

    def notify(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks.values():
            getattr(callback, hook)(self, *arguments)
