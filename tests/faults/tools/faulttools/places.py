"""Signals that come exactly there: before the n-th call of the functions that a training consists of."""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Callable
from typing import Any

PLACES = {
    "returnn_hydra.engine.lock": ["RunLock.acquire", "RunLock.release"],
    "returnn_hydra.engine.run_store": [
        *("RunStore.__enter__", "RunStore.restore", "RunStore.save_epoch", "RunStore.save_within_epoch"),
        *("RunStore.end_if_stopped", "RunStore.save_records", "RunStore.wait", "RunStore.__exit__"),
    ],
    "returnn_hydra.engine.trainer": [
        *("Trainer.run", "Trainer.run_epoch", "Trainer.train_epoch", "Trainer.train_batch", "Trainer.evaluate_epoch"),
        *("Trainer.start_epoch", "Trainer.read_numbers"),
    ],
    "returnn_hydra.engine.updater": ["Updater.update", "Updater.end_epoch"],
    "returnn_hydra.engine.checkpoint": [
        *("CheckpointStore._save", "CheckpointStore.load_newest", "CheckpointStore.clean_up"),
        "CheckpointStore.remove_latest",
    ],
    "returnn_hydra.engine.retention": ["Retention.apply"],
    "returnn_hydra.engine.score_file": ["ScoreFile.write"],
    "returnn_hydra.steps.cross_entropy": ["CrossEntropy.__call__"],
    "returnn_hydra.tasks.run_folder": ["RunFolder.save_config"],
    "returnn_hydra.tasks.job": ["write_result"],
}
"""From the first to the last thing that a training does; those of the store also on its thread."""


def send_before(call: int, number: int) -> None:
    """Send this process a signal before that call; -1: none.

    Prints `place 17: Trainer.train_batch` at the signal, or for every call when there is none, and `batch after the
    signal` for each of those.
    """
    numbers = itertools.count()  # next() is one step for Python: the saver's thread counts, too

    def counted(place: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **options: Any) -> Any:
            mine = next(numbers)
            if 0 <= call < mine and place == "Trainer.train_batch":
                print("batch after the signal", flush=True)
            if mine == call or call < 0:
                print(f"place {mine}: {place}", flush=True)
            if mine == call:
                os.kill(os.getpid(), number)
            return function(*arguments, **options)

        return counting

    for module_name, places in PLACES.items():
        for place in places:
            owner: Any = importlib.import_module(module_name)
            *classes, name = place.split(".")
            for class_name in classes:
                owner = getattr(owner, class_name)
            setattr(owner, name, counted(place, getattr(owner, name)))
