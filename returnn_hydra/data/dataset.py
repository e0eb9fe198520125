"""What a source of sequences offers to ordering, batching and reading."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from returnn_hydra.batch import TensorSpec


class DataError(Exception):
    """Data that can't be used: names the file, the sequence, the stream, what was found and what was expected."""

    seq_tag: str | None = None
    """The sequence, where the one who knows its file has still to be asked (see `Dataset.file_of`)."""

    def add_file(self, file_of: Callable[[str], str | None]) -> None:
        """Put the file of the sequence before the text, if `file_of` knows it."""
        file = None if self.seq_tag is None else file_of(self.seq_tag)
        if file is not None:
            self.args, self.seq_tag = (f"{file}: {self}",), None


@dataclass(frozen=True)
class Examples:
    """Some sequences as they were read."""

    seq_tags: list[str]
    streams: dict[str, list[np.ndarray]]
    """Stream name to one array per sequence: (T, ...) with a time axis, (...) without. Text is a 0-d array of str."""


def wrong_sequence(seq_tag: str | None, text: str) -> DataError:
    """An error about a sequence, whose file is still to be asked for."""
    error = DataError(text)
    error.seq_tag = seq_tag
    return error


class Dataset(ABC):
    """A corpus: sequences 0 .. N-1, each with a unique tag and the same named streams.

    Instances are picklable (loader workers get a copy) and open their files at the first read: building one is cheap.
    """

    streams: Mapping[str, TensorSpec]
    """What every sequence holds."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of sequences."""

    @abstractmethod
    def seq_tags(self, indices: Sequence[int] | np.ndarray) -> list[str]:
        """The tags of these sequences."""

    @abstractmethod
    def seq_lengths(self, stream: str) -> np.ndarray | None:
        """Frames of every sequence in this stream, (N,) int64; None where only reading the data would tell."""

    @abstractmethod
    def read(self, indices: Sequence[int] | np.ndarray) -> Examples:
        """These sequences, in this order.

        Raises:
            DataError: a sequence can't be read, or is not what its stream's spec says.
        """

    def order_lengths(self) -> np.ndarray | None:
        """What orderings by length (sorted, laplace, ...) sort by: (N,) numbers; None where only reading would tell.

        Here the frames of the stream `data`, else of the first stream with a time axis.
        """
        names = sorted((name for name, spec in self.streams.items() if spec.has_time), key=lambda name: name != "data")
        return self.seq_lengths(names[0]) if names else None

    def with_streams(self, names: Sequence[str]) -> Dataset:
        """The same corpus, of which only these streams are read; sources that save work by it return another one."""
        return self

    def file_of(self, seq_tag: str) -> str | None:
        """The file that holds a sequence, for error messages; None if that is not known."""
        return None

    @property
    def is_block_copy(self) -> bool:
        """Whether reading is no more than copying memory, at the latest after the first time.

        Handing batches over from worker processes would then cost several times what reading does.
        """
        return False

    def share_memory(self) -> None:  # noqa: B027 - most sources keep nothing in memory
        """What will be kept in memory shall be shared with the processes that are forked from now on."""

    def at_epoch(self, epoch: int) -> Dataset:
        """The corpus of this epoch (counted from 1); sources that change between epochs return another data set."""
        return self
