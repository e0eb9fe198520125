"""A batch that made trouble, in a file: to look at it, and to run it again (task=replay)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from returnn_hydra.batch import Batch
from returnn_hydra.engine.errors import DamagedStateError
from returnn_hydra.engine.files import FileSystem
from returnn_hydra.engine.tensor_file import read_foreign_tensors, write_tensors

FOLDER = "bad_batches"


def save_batch(folder: Path, batch: Batch, number: int, disk: FileSystem, rank: int = 0) -> Path:
    """Write a batch into the run's folder.

    Args:
        number: of the batch in its epoch, among those of this rank.

    Returns:
        The file.
    """
    disk.make_folder(folder / FOLDER)
    of_rank = f".rank{rank}" if rank else ""
    file = folder / FOLDER / f"epoch.{batch.epoch:03d}.batch.{number:06d}{of_rank}.pt"
    tensors = {
        name: value.detach().cpu() if isinstance(value, torch.Tensor) else np.asarray(value).tolist()
        for name, value in batch.tensors.items()
    }
    lengths = {name: value.detach().cpu() for name, value in batch.lengths.items()}
    content: dict[str, Any] = {"tensors": tensors, "lengths": lengths, "seq_tags": batch.seq_tags}
    write_tensors(disk, file, {**content, "epoch": batch.epoch, "batch": number})
    return file


def load_batch(file: Path, disk: FileSystem) -> Batch:
    """The batch of a file.

    Raises:
        DamagedStateError: the file holds something else.
    """
    content = read_foreign_tensors(disk, file)
    if not {"tensors", "lengths", "seq_tags", "epoch"} <= set(content):
        raise DamagedStateError(f"{file}: holds no batch (its keys: {', '.join(map(str, content))})")
    tensors = {
        name: value if isinstance(value, torch.Tensor) else np.array(value, dtype=str)
        for name, value in content["tensors"].items()
    }
    return Batch(tensors, content["lengths"], list(content["seq_tags"]), int(content["epoch"]))


def describe_batch(batch: Batch) -> str:
    """`data (12, 812, 40), classes (12, 60), longest sequence 'train-17' with 812 frames`."""
    shapes = ", ".join(f"{name} {tuple(np.shape(value))}" for name, value in batch.tensors.items())
    if not batch.lengths:
        return shapes
    lengths = next(iter(batch.lengths.values()))
    longest = int(lengths.argmax())
    return f"{shapes}, longest sequence {batch.seq_tags[longest]!r} with {int(lengths[longest])} frames"


@contextlib.contextmanager
def naming(batch: Batch) -> Iterator[None]:
    """An error of the model or of a step gets a note about the batch that it happened with."""
    try:
        yield
    except Exception as error:
        if not hasattr(error, "exit_code"):
            error.add_note(f"the batch: {describe_batch(batch)}")
        raise
