"""Some sequences of another data set: by index, as often as wanted.

Legend: N sequences of the view.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from returnn_hydra.data.dataset import DataError, Dataset, Examples

AnyDataset = TypeVar("AnyDataset", bound=Dataset)
Indices = Sequence[int] | np.ndarray


class ComposedDataset(Dataset):
    """Base of data sets that are made of others."""

    dataset: Dataset

    def _inner(self) -> Iterable[Dataset]:
        """The others."""
        return [self.dataset]

    def file_of(self, seq_tag: str) -> str | None:
        return next((file for dataset in self._inner() if (file := dataset.file_of(seq_tag)) is not None), None)

    @property
    def is_block_copy(self) -> bool:
        return all(dataset.is_block_copy for dataset in self._inner())

    def share_memory(self) -> None:
        for dataset in self._inner():
            dataset.share_memory()


class WrappedDataset(ComposedDataset):
    """Another data set as it is; a base for those that change some of it."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.streams = dataset.streams

    def __len__(self) -> int:
        return len(self.dataset)

    def seq_tags(self, indices: Indices) -> list[str]:
        return self.dataset.seq_tags(indices)

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        return self.dataset.seq_lengths(stream)

    def order_lengths(self) -> np.ndarray | None:
        return self.dataset.order_lengths()

    def read(self, indices: Indices) -> Examples:
        return self.dataset.read(indices)

    def with_streams(self, names: Sequence[str]) -> Dataset:
        return renewed(self, dataset=self.dataset.with_streams(names))

    def at_epoch(self, epoch: int) -> Dataset:
        """The same around the wrapped data set of this epoch."""
        dataset = self.dataset.at_epoch(epoch)
        return self if dataset is self.dataset else renewed(self, dataset=dataset, streams=dataset.streams)


class SubsetDataset(ComposedDataset):
    """The sequences `indices` of `dataset`, in this order.

    A sequence that is there several times gets "#2", "#3", ... behind the tag of its further copies.
    """

    def __init__(self, dataset: Dataset, indices: Indices) -> None:
        self.dataset = dataset
        self.indices = np.asarray(indices, dtype=np.int64)
        self.streams = dataset.streams

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def _copies(self) -> np.ndarray | None:
        return copy_numbers(self.indices)

    def seq_tags(self, indices: Indices) -> list[str]:
        return self._tags(self.dataset.seq_tags(self.indices[as_array(indices)]), as_array(indices))

    def _tags(self, tags: list[str], indices: np.ndarray) -> list[str]:
        return numbered(tags, select(self._copies, indices))

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        return select(self.dataset.seq_lengths(stream), self.indices)

    def order_lengths(self) -> np.ndarray | None:
        return select(self.dataset.order_lengths(), self.indices)

    def read(self, indices: Indices) -> Examples:
        examples = self.dataset.read(self.indices[as_array(indices)])
        return Examples(self._tags(examples.seq_tags, as_array(indices)), examples.streams)

    def with_streams(self, names: Sequence[str]) -> Dataset:
        return SubsetDataset(self.dataset.with_streams(names), self.indices)


def copy_numbers(indices: np.ndarray) -> np.ndarray | None:
    """How often the same index came before, (N,); None if none comes twice."""
    order = np.argsort(indices, kind="stable")
    ordered = indices[order]
    same = np.concatenate([[False], ordered[1:] == ordered[:-1]])
    if not same.any():
        return None
    positions = np.arange(len(order))
    copies = np.empty_like(positions)
    copies[order] = positions - np.maximum.accumulate(np.where(same, 0, positions))
    return copies


def numbered(tags: list[str], copies: np.ndarray | None) -> list[str]:
    """The tags, with "#2", "#3", ... behind those of further copies."""
    if copies is None:
        return tags
    return [f"{tag}#{n + 1}" if n else tag for tag, n in zip(tags, copies.tolist(), strict=True)]


def as_array(indices: Indices) -> np.ndarray:
    """Indices as an int64 array (an empty list too)."""
    return np.asarray(indices, dtype=np.int64)


def select(values: np.ndarray | None, indices: np.ndarray) -> np.ndarray | None:
    """values[indices], or None if there are none."""
    return None if values is None else values[indices]


def renewed(source: AnyDataset, /, **attributes: Any) -> AnyDataset:
    """A copy with other attributes; what was worked out from the old ones is forgotten."""
    new = copy.copy(source)
    for name in [name for name in new.__dict__ if isinstance(getattr(type(new), name, None), cached_property)]:
        del new.__dict__[name]
    new.__dict__.update(attributes)
    return new


def tag_index(tags: Sequence[str], where: str) -> dict[str, int]:
    """{tag: index}.

    Raises:
        DataError: a tag is there twice.
    """
    index = {tag: number for number, tag in enumerate(tags)}
    if len(index) != len(tags):
        first = next(tag for number, tag in enumerate(tags) if index[tag] != number)
        raise DataError(f"{where}: seq_tag {first!r} is there {list(tags).count(first)} times")
    return index
