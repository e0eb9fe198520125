"""Reading batches ahead of the training loop: in a thread of this process, or in worker processes."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.data.batching import Piece
from returnn_hydra.data.collate import collate
from returnn_hydra.data.dataset import DataError, Dataset

WorkItem = tuple[int, Piece]
"""The epoch, and the sequences of one of its batches."""


class BatchReader:
    """Reads the sequences of a batch and pads them."""

    def __init__(self, dataset: Dataset, specs: Mapping[str, TensorSpec], check_finite: bool = False) -> None:
        self.dataset = dataset
        self.specs = specs
        self.check_finite = check_finite
        self._of_epoch: tuple[int, Dataset] | None = None

    def read(self, item: WorkItem) -> Batch:
        """One batch.

        Raises:
            DataError: also in place of any other error of the data set, with the tags of the batch.
        """
        epoch, piece = item
        if self._of_epoch is None or self._of_epoch[0] != epoch:
            self._of_epoch = (epoch, self.dataset.at_epoch(epoch))
        dataset = self._of_epoch[1]
        try:
            examples = dataset.read(piece.indices)
            return collate(examples, self.specs, epoch, piece.starts, piece.ends, self.check_finite)
        except DataError:
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {error}, while reading the sequences {_tags(dataset, piece)}"
            raise DataError(text) from error


def _tags(dataset: Dataset, piece: Piece) -> str:
    tags = []
    with contextlib.suppress(Exception):  # only the words of another error's message
        tags = dataset.seq_tags(piece.indices[:10])
    more = len(piece.indices) - len(tags)
    return ", ".join(map(repr, tags)) + (f" and {more} more" if more else "")


def read_ahead(reader: BatchReader, items: Sequence[WorkItem], prefetch: int, pin_memory: bool) -> Iterator[Batch]:
    """The batches, read by a thread that is up to `prefetch` batches ahead."""
    if not prefetch:
        for item in items:
            batch = reader.read(item)
            yield batch.pin_memory() if pin_memory else batch
        return
    ready: queue.Queue[Any] = queue.Queue(maxsize=prefetch)
    stop = threading.Event()

    def produce() -> None:
        try:
            for item in items:
                batch = reader.read(item)
                ready.put(batch.pin_memory() if pin_memory else batch)
                if stop.is_set():
                    return
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=produce, name="read_ahead", daemon=True)
    thread.start()
    try:
        while (batch := ready.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            yield batch
    finally:
        stop.set()
        while thread.is_alive():
            with contextlib.suppress(queue.Empty):
                ready.get(timeout=0.05)
        thread.join()


class _WorkerDataset(TorchDataset):
    """What torch's DataLoader asks its workers for: the "index" is the work item itself."""

    def __init__(self, reader: BatchReader) -> None:
        self.reader = reader

    def __getitem__(self, item: WorkItem) -> Batch | DataError:
        try:
            return self.reader.read(item)
        except DataError as error:
            return DataError(*error.args)


def read_in_workers(
    reader: BatchReader, items: Sequence[WorkItem], num_workers: int, prefetch: int, pin_memory: bool
) -> Iterator[Batch]:
    """The batches, in their order, read by `num_workers` processes.

    Raises:
        DataError: the original one of a worker; or a worker died.
    """
    loader: DataLoader = DataLoader(
        _WorkerDataset(reader),
        batch_size=None,
        sampler=items,
        num_workers=num_workers,
        prefetch_factor=max(prefetch, 1),
        pin_memory=pin_memory and torch.cuda.is_available(),
    )
    batches = iter(loader)
    done = 0
    try:
        while done < len(items):
            try:
                batch = next(batches)
            except RuntimeError as error:
                tags = _tags(reader.dataset, items[done][1])
                raise DataError(f"{error} (waiting for batch {done} of {len(items)}: {tags})") from error
            if isinstance(batch, DataError):
                raise batch
            done += 1
            yield batch
    finally:
        shutdown = getattr(batches, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()
