"""Data sets that choose or order their sequences anew in every epoch."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from returnn_hydra.data.dataset import DataError, Dataset, Examples
from returnn_hydra.data.files import PathLike, nearest, read_literal
from returnn_hydra.data.order import SeqOrder
from returnn_hydra.data.views import ComposedDataset, Indices, SubsetDataset, WrappedDataset


class EpochDataset(Dataset):
    """Base of data sets whose sequences depend on the epoch; before `at_epoch` it is the first epoch's."""

    _names: Sequence[str] | None = None

    def _of_epoch(self, epoch: int) -> Dataset:
        """The data set of this epoch."""
        raise NotImplementedError

    def at_epoch(self, epoch: int) -> Dataset:
        dataset = self._of_epoch(epoch)
        return dataset if self._names is None else dataset.with_streams(self._names)

    def with_streams(self, names: Sequence[str]) -> Dataset:
        other = copy.copy(self)
        other.__dict__.pop("_first_epoch", None)
        other._names = list(names)
        return other

    @property
    def _first(self) -> Dataset:
        if "_first_epoch" not in self.__dict__:
            self.__dict__["_first_epoch"] = self.at_epoch(1)
        return self.__dict__["_first_epoch"]

    def __len__(self) -> int:
        return len(self._first)

    def seq_tags(self, indices: Indices) -> list[str]:
        return self._first.seq_tags(indices)

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        return self._first.seq_lengths(stream)

    def order_lengths(self) -> np.ndarray | None:
        return self._first.order_lengths()

    def read(self, indices: Indices) -> Examples:
        return self._first.read(indices)


def indices_of_epoch(dataset: Dataset, order: SeqOrder, epoch: int) -> np.ndarray:
    """The sequences of an epoch, in their order.

    Args:
        dataset: the epoch's own (see `Dataset.at_epoch`).

    Raises:
        DataError: the order needs lengths that only reading would tell.
    """
    if not order.needs_lengths(epoch, len(dataset)):
        return order.indices(epoch, len(dataset))
    lengths = dataset.order_lengths()
    if lengths is None:
        what = f"seq_ordering={order.seq_ordering!r}"
        raise DataError(f"{what} needs lengths, which a {type(dataset).__name__} does not know before reading")
    return order.indices(epoch, lengths)


class OrderedDataset(ComposedDataset, EpochDataset):
    """A data set with an order, a partition or a repetition of its own, as a part of another data set.

    Args:
        dataset: the sequences.
        seq_ordering, partition_epoch, repeat_epoch, ...: as of SeqOrder.
    """

    def __init__(self, dataset: Dataset, **order: Any) -> None:
        self.dataset = dataset
        self.streams = dataset.streams
        try:
            self.order = SeqOrder(**order)
        except (TypeError, ValueError) as error:
            raise DataError(f"OrderedDataset: {error}") from error

    def _of_epoch(self, epoch: int) -> Dataset:
        dataset = self.dataset.at_epoch(epoch)
        return SubsetDataset(dataset, indices_of_epoch(dataset, self.order, epoch))


class LengthsFromFile(WrappedDataset):
    """A data set that is ordered by lengths out of a file, where finding them in the data would take long.

    Args:
        dataset: the sequences.
        seq_lens_file: {tag: length} or {tag: {stream: length}} as JSON or Python literal, maybe packed (.gz).
        stream: which one to take out of {stream: length}.
    """

    def __init__(self, dataset: Dataset, seq_lens_file: PathLike, stream: str = "data") -> None:
        super().__init__(dataset)
        self.seq_lens_file = seq_lens_file
        self.stream = stream

    def order_lengths(self) -> np.ndarray:
        """The lengths in the file.

        Raises:
            DataError: a sequence is not in the file.
        """
        lengths = read_seq_lens(self.seq_lens_file)
        tags = self.dataset.seq_tags(np.arange(len(self.dataset)))
        missing = [tag for tag in tags if tag not in lengths]
        if missing:
            raise DataError(
                f"{self.seq_lens_file}: no length of {len(missing)} of {len(tags)} sequences, e.g. {missing[0]!r}"
                f"{nearest(missing[0], lengths)}"
            )
        values = [lengths[tag] for tag in tags]
        return np.array([value[self.stream] if isinstance(value, Mapping) else value for value in values])


def read_seq_lens(path: PathLike) -> Mapping[str, Any]:
    """{tag: length} out of a file of JSON or a Python literal."""
    lengths = read_literal(path)
    if not isinstance(lengths, Mapping):
        raise DataError(f"{path}: expected a dict seq_tag -> length, got {type(lengths).__name__}")
    return lengths
