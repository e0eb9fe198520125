"""status.json while a training lives and result.json when a run has ended: for schedulers, sweeps and people."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from returnn_hydra.engine.callback import Callback
from returnn_hydra.engine.errors import MEANING, Stopped, exit_code_of, last_line
from returnn_hydra.engine.files import FileSystem, write_text

if TYPE_CHECKING:
    from returnn_hydra.batch import Batch, Loss
    from returnn_hydra.engine.records import EpochRecord
    from returnn_hydra.engine.trainer import Trainer

STATUS_FILE = "status.json"
RESULT_FILE = "result.json"
"""Of a training, which holds the folder's lock."""
EVERY_SECONDS = 10.0
"""How old the batch number in status.json may be."""


class StatusFile(Callback):
    """What a live training does, for whoever looks: state, how far, since when, which process.

    with StatusFile(folder) as status:
        Trainer(..., callbacks={"status": status}).run()

    The states: starting, training, evaluating, and in the end done, stopped or failed (with `exit_code`). A reader sees
    a whole file or none. It is not synced to the disk, so that it costs nothing; after a power cut it may be empty.
    After kill -9 it says what the dead process did last; `run.lock` tells whether there is one that lives.
    """

    def __init__(self, folder: Path, disk: FileSystem | None = None) -> None:
        self._path = folder / STATUS_FILE
        self._disk = disk or FileSystem()
        self._state, self._since = "", ""
        self._position: dict[str, Any] = {}
        self._written = 0.0

    def _write(self, state: str, **facts: Any) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        if state != self._state:
            self._state, self._since = state, now
        process = {"pid": os.getpid(), "host": socket.gethostname()}
        status = {"state": state, "since": self._since, "written": now, **process, **self._position, **facts}
        write_text(self._disk, self._path, json.dumps(status, indent=1) + "\n", synced=False)
        self._written = time.monotonic()

    def _write_position(self, state: str, trainer: Trainer, **facts: Any) -> None:
        epoch, batch = trainer.position.epoch, trainer.position.batch
        total = trainer.train_data.num_batches(epoch)
        self._position = {"epoch": epoch, "num_epochs": trainer.num_epochs, "batch": batch, "num_batches": total}
        self._write(state, **facts)

    def __enter__(self) -> StatusFile:
        self._write("starting")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(Exception) if error else contextlib.nullcontext():
            self._write(ending(error), exit_code=exit_code_of(error))

    def on_epoch_start(self, trainer: Trainer) -> None:
        self._write_position("training", trainer)

    def on_step_end(self, trainer: Trainer, batch: Batch, losses: Mapping[str, Loss]) -> None:
        if time.monotonic() - self._written >= EVERY_SECONDS:
            self._write_position("training", trainer)

    def on_evaluation_start(self, trainer: Trainer, dataset: str) -> None:
        self._write_position("evaluating", trainer, dataset=dataset)

    def on_epoch_end(self, trainer: Trainer, record: EpochRecord) -> None:
        self._write_position("training", trainer)


def ending(error: BaseException | None) -> str:
    """done, stopped or failed."""
    return "done" if error is None else "stopped" if isinstance(error, Stopped) else "failed"


def result_file(task: str) -> str:
    """Where the result of a task stands: result.json of a training, result.TASK.json of what may run beside one."""
    return RESULT_FILE if task == "train" else f"result.{task.replace('/', '.')}.json"


def write_result(
    disk: FileSystem, folder: Path, error: BaseException | None, facts: Mapping[str, Any], file: str = RESULT_FILE
) -> int:
    """How the run ended: `{"status": "done" | "stopped" | "failed", "exit_code", "meaning", "error", **facts}`.

    Args:
        file: its name; see `result_file`.

    Returns:
        The exit code for the process.
    """
    code = exit_code_of(error)
    result = {
        "status": ending(error),
        "exit_code": code,
        "meaning": MEANING.get(code, "an exit code of its own"),
        "error": None if error is None else last_line(error),
        **facts,
    }
    write_text(disk, folder / file, json.dumps(result, indent=1) + "\n")
    return code
