"""Corpora of many files: every epoch reads some of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from returnn_hydra.data.dataset import DataError, Dataset
from returnn_hydra.data.files import PathLike, read_lines, read_literal
from returnn_hydra.data.order import SeqOrder
from returnn_hydra.data.ordered import EpochDataset
from returnn_hydra.data.variable import check_streams

FileTree = Any
"""A file name, or a list, tuple or dict of these: files that belong together."""


class DistributeFilesDataset(EpochDataset):
    """The files of a corpus, dealt to `partition_epoch` epochs by size; each epoch is a data set over its files.

    Every pass over the corpus shuffles the files and deals them anew, in order, to parts of about equal size.

    Args:
        files: the files, as a list; or a file of one (.txt: a name per line, .json, .py: a Python literal); or a
            function that returns the list. An entry may be several files that belong together.
        get_sub_epoch_dataset: list of files -> data set. It gets the number of the pass as its epoch.
        partition_epoch: parts of one pass.
        seq_ordering: of the files: default or random.
        num_shards, shard_index: this process reads only its share of the files; then nothing may split the batches
            again (`is_rank_part` says so).
        fixed_random_seed, random_seed_offset: as of SeqOrder.

    Raises:
        DataError: fewer files than parts, or a file that does not exist.
    """

    def __init__(
        self,
        files: Sequence[FileTree] | PathLike | Callable[[], Sequence[FileTree]],
        get_sub_epoch_dataset: Callable[[list[FileTree]], Dataset],
        partition_epoch: int,
        seq_ordering: str = "random",
        num_shards: int = 1,
        shard_index: int = 0,
        fixed_random_seed: int | None = None,
        random_seed_offset: int = 0,
    ) -> None:
        if seq_ordering not in ("default", "random"):
            raise DataError(
                f"DistributeFilesDataset: seq_ordering={seq_ordering!r}: files are in default or random order"
            )
        try:
            self._order = SeqOrder(
                seq_ordering,
                partition_epoch=partition_epoch,
                fixed_random_seed=fixed_random_seed,
                random_seed_offset=random_seed_offset,
                num_shards=num_shards,
                shard_index=shard_index,
            )
        except ValueError as error:
            raise DataError(f"DistributeFilesDataset: {error}") from error
        self.files = _file_list(files)
        if len(self.files) < partition_epoch * num_shards:
            raise DataError(
                f"DistributeFilesDataset: {len(self.files)} files can't be dealt to partition_epoch={partition_epoch} "
                f"x num_shards={num_shards} parts"
            )
        self.get_sub_epoch_dataset = get_sub_epoch_dataset
        self.is_rank_part = num_shards > 1
        self.streams = get_sub_epoch_dataset(self.files[:1]).streams
        self._sizes: list[int] | None = None
        self._current: tuple[int, Dataset] | None = None

    def _of_epoch(self, epoch: int) -> Dataset:
        if self._current is None or self._current[0] != epoch:
            files = self.files_of(epoch)
            dataset = self.get_sub_epoch_dataset(files)
            check_streams(self, dataset, f"data set of the files {files}")
            self._current = epoch, dataset
        return self._current[1].at_epoch(self._order.full_epoch(epoch))

    def files_of(self, epoch: int) -> list[FileTree]:
        """The files that this epoch reads."""
        if self._sizes is None:
            self._sizes = [sum(os.path.getsize(path) for path in _leaves(tree)) for tree in self.files]
        order = list(range(len(self.files)))
        if self._order.seq_ordering == "random":
            seed = self._order.random_seed(epoch, self._order.ordering(epoch, len(order)))
            np.random.RandomState(seed).shuffle(order)
        parts = deal_by_size([self._sizes[i] for i in order], self._order.partition_epoch * self._order.num_shards)
        part = self._order.partition_epoch * self._order.shard_index + (epoch - 1) % self._order.partition_epoch
        return [self.files[order[i]] for i in parts[part]]


def deal_by_size(sizes: Sequence[int], num_parts: int) -> list[list[int]]:
    """Cut the list into consecutive parts of about equal size, none of them empty (RETURNN's rule).

    A part takes items while it stays within the average of what was left for it; the item that would exceed it goes
    where the part comes nearer to that average. Items are kept back so that every later part gets one.
    """
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    total = sum(sizes)
    target = total / num_parts
    part = filled = taken = 0
    for item, size in enumerate(sizes):
        taken += size
        if len(sizes) - item <= num_parts - part - 1:
            part += 1
            parts[part].append(item)
            filled = size
            target = (total - taken) / (num_parts - part)
        elif part == num_parts - 1 or filled + size <= target:
            parts[part].append(item)
            filled += size
        else:
            here = not parts[part] or abs(filled + size - target) <= abs(filled - target)
            parts[part if here else part + 1].append(item)
            filled = 0 if here else size
            part += 1
            target = (total - taken) / (num_parts - part)
    return parts


def _file_list(files: Sequence[FileTree] | PathLike | Callable[[], Sequence[FileTree]]) -> list[FileTree]:
    if callable(files):
        files = files()
    if isinstance(files, str | os.PathLike):
        files = _read_file_list(Path(files))
    if not isinstance(files, list | tuple):
        raise DataError(f"DistributeFilesDataset: expected a list of files, got {type(files).__name__}")
    for path in (path for tree in files for path in _leaves(tree)):
        if not os.path.isfile(path):
            raise DataError(f"DistributeFilesDataset: no file {str(path)!r}")
    return list(files)


def _read_file_list(path: Path) -> list[FileTree]:
    if path.suffix == ".txt":
        return [line.strip() for line in read_lines(path) if line.strip() and not line.strip().startswith("#")]
    if path.suffix in (".json", ".py"):
        return read_literal(path)
    raise DataError(f"{path}: a list of files ends with .txt, .json or .py")


def _leaves(tree: FileTree) -> list[Any]:
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        return [leaf for branch in tree for leaf in _leaves(branch)]
    return [tree]
