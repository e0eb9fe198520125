"""A trainer in a few lines that uses the store as the real one does: resume, save inside and after epochs, clean up.

Its "training" is a recurrence, so that every state follows from the one before, and a wrong resume shows in the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from returnn_hydra.engine.checkpoint import Checkpoint, CheckpointStore, run_id_of_folder
from returnn_hydra.engine.files import FileSystem
from returnn_hydra.engine.manifest import Progress
from returnn_hydra.engine.retention import Retention
from returnn_hydra.engine.score_file import ScoreFile

FOLDER = Path("/run")
BATCHES = 3
RETENTION = Retention(keep_last=1, keep_best=1)
FINGERPRINT = {"seed": 1, "model.hidden_dim": 4}


@dataclass
class Trained:
    """All that a run must have right in the end."""

    weight: float
    moment: float
    step: int
    scores: list[dict[str, Any]]


@dataclass
class Saved:
    """A save that returned."""

    position: tuple[int, float]
    operations: int
    """So many changes of the disk were made when it returned."""


def content(weight: float, moment: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model and optimizer state, as the real trainer gives them."""
    model = {"weight": torch.tensor([weight, 2 * weight], dtype=torch.float64)}
    optimizer = {
        "optimizer": {"state": {0: {"exp_avg": torch.tensor([moment], dtype=torch.float64)}}, "param_groups": []},
        "optimizer_class_name": "Toy",
        "optimizer_opts": {},
        "param_names": ["weight"],
    }
    return model, optimizer


def numbers(checkpoint: Checkpoint) -> tuple[float, float]:
    """What `content` was made of."""
    assert checkpoint.optimizer is not None
    weight = checkpoint.model["weight"]
    assert float(weight[1]) == 2 * float(weight[0])
    return float(weight[0]), float(checkpoint.optimizer["optimizer"]["state"][0]["exp_avg"][0])


def make_store(disk: FileSystem, folder: Path = FOLDER) -> CheckpointStore:
    return CheckpointStore(folder, run_id_of_folder(folder, disk), FINGERPRINT, disk=disk)


def train(
    disk: FileSystem,
    num_epochs: int = 4,
    folder: Path = FOLDER,
    retention: Retention = RETENTION,
    on_saved: Callable[[Progress, tuple[float, float]], None] = lambda progress, numbers: None,
) -> Trained:
    """Start, or go on after whatever happened, until the last epoch."""
    store = make_store(disk, folder)
    store.clean_up()
    score_file = ScoreFile(folder / "scores.jsonl", disk)
    checkpoint = store.load_newest()
    weight, moment, step, epoch, batch, records = 1.0, 0.0, 0, 1, 0, list[dict[str, Any]]()
    if checkpoint is not None:
        weight, moment = numbers(checkpoint)
        progress = checkpoint.progress
        step, records, epoch = progress.step, list(progress.state["scores"]), progress.epoch
        batch = BATCHES if progress.batch is None else progress.batch
    while epoch <= num_epochs:
        while batch < BATCHES:
            moment = 0.9 * moment + weight / (1 + step)
            weight, step, batch = weight + 0.1 * moment, step + 1, batch + 1
            if batch < BATCHES:
                progress = Progress(epoch, batch, step, 0.1, {"scores": records})
                store.save_latest(progress, *content(weight, moment))
                on_saved(progress, (weight, moment))
        progress = Progress(epoch, None, step, 0.1, {"scores": records})
        if store.epoch_name(epoch) != (checkpoint.manifest.name if checkpoint else ""):
            store.save_epoch(progress, *content(weight, moment))
            on_saved(progress, (weight, moment))
        records = [*records, {"epoch": epoch, "loss": abs(weight - 1.3)}]
        score_file.write(records)
        retention.apply(store, {record["epoch"]: record["loss"] for record in records})
        epoch, batch = epoch + 1, 0
    store.remove_latest()
    return Trained(weight, moment, step, score_file.read())
