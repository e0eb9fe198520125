"""A progress bar on a terminal: batches of the epoch, loss, frames per second, remaining time."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from returnn_hydra.batch import Batch, Loss
from returnn_hydra.engine.callback import Callback
from returnn_hydra.engine.log import TerminalHandler
from returnn_hydra.engine.scores import format_number
from returnn_hydra.engine.trainer import Trainer


class Progress(Callback):
    """Drawn by rich, below the log lines; nothing when the output is no terminal.

    Args:
        every_seconds: how often it is drawn anew; the loss is read from the device only then.
    """

    def __init__(self, every_seconds: float = 0.5) -> None:
        self.every_seconds = every_seconds
        self._bar: Any = None
        self._task: Any = None
        self._drawn = 0.0
        self._frames = 0.0

    def on_run_start(self, trainer: Trainer) -> None:
        console = next(
            (
                handler.console
                for handler in logging.getLogger("returnn_hydra").handlers
                if isinstance(handler, TerminalHandler)
            ),
            None,
        )
        if console is None or not console.is_terminal:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[scores]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True)
        self._bar.start()

    def on_epoch_start(self, trainer: Trainer) -> None:
        if self._bar is None:
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        epoch = trainer.position.epoch
        total = trainer.train_data.num_batches(epoch)
        self._task = self._bar.add_task("", total=total, completed=trainer.position.batch, epoch=epoch, scores="")
        self._frames, self._drawn = 0.0, time.monotonic()

    def on_step_end(self, trainer: Trainer, batch: Batch, losses: Mapping[str, Loss]) -> None:
        if self._bar is None or self._task is None:
            return
        self._frames += max((tensor.shape[0] * tensor.shape[1] for tensor in _with_time(batch)), default=batch.num_seqs)
        passed = time.monotonic() - self._drawn
        if passed >= self.every_seconds:
            shown = " ".join(f"{name} {format_number(float(loss.mean))}" for name, loss in losses.items())
            scores = f"{shown}  {self._frames / passed:.0f} frames/s"
            self._bar.update(self._task, completed=trainer.position.batch, scores=scores)
            self._frames, self._drawn = 0.0, time.monotonic()

    def on_run_end(self, trainer: Trainer, error: BaseException | None) -> None:
        if self._bar is not None:
            self._bar.stop()


def _with_time(batch: Batch) -> list:
    return [batch[name] for name in batch.lengths]
