"""Reading batches ahead of the training loop: in a thread of this process, or in worker processes."""

from __future__ import annotations

import contextlib
import gc
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.data.batches import Batches, Piece
from returnn_hydra.data.collate import collate
from returnn_hydra.data.dataset import DataError, Dataset

WorkItem = tuple[int, Piece]
"""The epoch, and the sequences of one of its batches."""


class WorkList(Sequence[WorkItem]):
    """What is to be read in an epoch, made when it is asked for."""

    def __init__(self, epoch: int, batches: Batches, start: int = 0) -> None:
        self.epoch = epoch
        self.batches = batches
        self.start = start

    def __len__(self) -> int:
        return max(len(self.batches) - self.start, 0)

    def __getitem__(self, i: Any) -> Any:
        if not 0 <= i < len(self):
            raise IndexError(f"batch {i} of {len(self)}")
        return self.epoch, self.batches[self.start + i]


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
        except DataError as error:
            error.add_file(dataset.file_of)
            raise
        except Exception as error:
            raise DataError(f"{type(error).__name__}: {error}, while reading {self.describe(item)}") from error

    def describe(self, item: WorkItem) -> str:
        """The sequences of a batch, in words for an error message."""
        epoch, piece = item
        tags: list[str] = []
        with contextlib.suppress(Exception):  # the other error is the one to tell
            tags = self.dataset.at_epoch(epoch).seq_tags(piece.indices[:10])
        more = len(piece.indices) - len(tags)
        return "the sequences " + ", ".join(map(repr, tags)) + (f" and {more} more" if more else "")


def ahead(batches: Iterator[Batch], prefetch: int, pin_memory: bool) -> Iterator[Batch]:
    """The batches, made by a thread that is up to `prefetch` batches ahead; closing the iterator ends the thread."""
    if pin_memory:
        batches = (batch.pin_memory() for batch in batches)
    if not prefetch:
        yield from batches
        return
    ready: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()
    room: queue.SimpleQueue[None] = queue.SimpleQueue()
    """An entry for every batch that may still be made."""
    for _ in range(prefetch):
        room.put(None)
    stop = threading.Event()

    def produce() -> None:
        try:
            while True:
                room.get()
                batch = None if stop.is_set() else next(batches, None)
                ready.put(batch)
                if batch is None:
                    return
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=produce, name="read_ahead", daemon=True)
    thread.start()
    try:
        while (batch := ready.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            room.put(None)
            yield batch
    finally:
        stop.set()
        room.put(None)
        thread.join()


class WorkItems(TorchDataset):
    """What torch's DataLoader asks its workers for: the "index" is the work item itself."""

    def __init__(self, reader: BatchReader) -> None:
        self.reader = reader

    def __getitem__(self, item: WorkItem) -> Batch | DataError:
        try:
            return self.reader.read(item)
        except DataError as error:  # as a value, so that it arrives itself and not torch's text about it
            return DataError(*error.args)


def from_workers(loader: DataLoader, describe: Callable[[int], str]) -> Iterator[Batch]:
    """The batches of worker processes, in their order; closing the iterator ends the processes.

    Args:
        describe: words for the error message about batch number i.

    Raises:
        DataError: the original one of a worker; or a worker died.
    """
    gc.freeze()  # the workers' garbage collection touches none of this process's objects: the memory stays shared
    try:
        batches = iter(loader)
    finally:
        gc.unfreeze()
    done = 0
    try:
        for batch in batches:
            if isinstance(batch, DataError):
                raise batch
            done += 1
            yield batch
    except (RuntimeError, OSError, EOFError) as error:  # torch's signal handler raises wherever the process is
        what = str(error) or "it ended while it sent a batch"
        raise DataError(f"a loader worker failed at batch {done}, {describe(done)}: {what}") from error
    finally:
        shutdown = getattr(batches, "_shutdown_workers", None)
        if shutdown is not None:
            with contextlib.suppress(RuntimeError):  # torch's signal handler once more
                shutdown()
            shutdown()


def own_generator(epoch: int) -> torch.Generator:
    """What a DataLoader seeds its workers from, so that it leaves torch's own generator to the training step."""
    return torch.Generator().manual_seed(epoch)


def read_in_workers(
    reader: BatchReader, items: Sequence[WorkItem], num_workers: int, prefetch: int, pin_memory: bool
) -> Iterator[Batch]:
    """The batches, in their order, read by `num_workers` processes."""
    loader: DataLoader = DataLoader(
        WorkItems(reader),
        batch_size=None,
        sampler=items,
        num_workers=num_workers,
        prefetch_factor=max(prefetch, 1),
        pin_memory=pin_memory,
        generator=own_generator(items[0][0] if items else 0),
    )
    return from_workers(loader, lambda done: reader.describe(items[min(done, len(items) - 1)]))
