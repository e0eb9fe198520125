"""Sources that only say what comes next: neither the number of sequences nor their lengths are known before reading."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from returnn_hydra.batch import TensorSpec


@dataclass(frozen=True)
class Example:
    """One sequence as it came out of a stream."""

    seq_tag: str
    streams: dict[str, np.ndarray]
    """Stream name to (T, ...) with a time axis, (...) without. Text is a 0-d array of str."""


class StreamingDataset(ABC):
    """Sequences that come one after the other.

    What an epoch holds is a pure function of the constructor's arguments and `epoch`: a resumed run skips to its batch.
    Instances are picklable.
    """

    streams: Mapping[str, TensorSpec]
    """What every sequence holds."""

    @abstractmethod
    def iterate(self, epoch: int, rank: int = 0, num_ranks: int = 1) -> Iterator[Example]:
        """The sequences of this epoch (counted from 1) that belong to this rank.

        Every sequence goes to exactly one of the ranks. A loader with several workers passes its workers as ranks.

        Raises:
            DataError: a sequence can't be read, or is not what its stream's spec says.
        """

    def file_of(self, seq_tag: str) -> str | None:
        """The file that holds a sequence, for error messages; None if that is not known."""
        return None
