"""Sequences in numpy's text files, two for each: `PREFIX0.data.txt.gz`, `PREFIX0.targets.txt.gz`,
`PREFIX1.data.txt.gz`, ...
"""

from __future__ import annotations

import itertools
from functools import cached_property
from pathlib import Path

import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.checks import checked_array, stream_spec
from returnn_hydra.data.dataset import DataError, Dataset, Examples
from returnn_hydra.data.files import PathLike
from returnn_hydra.data.views import Indices


class NumpyDumpDataset(Dataset):
    """Sequences written with `numpy.savetxt`. Streams: `data` (T, num_inputs), `classes` (T,). Tags: `seq-0`, ...

    Args:
        prefix: of the files.
        num_inputs: features of a frame.
        num_outputs: number of classes.
        postfix: of the files.
        start_seq, end_seq: numbers of the first sequence, and of the one behind the last; default: all that are there.

    Raises:
        DataError: there is no such file, or it holds anything else.
    """

    def __init__(
        self,
        prefix: PathLike,
        num_inputs: int,
        num_outputs: int,
        postfix: str = ".txt.gz",
        start_seq: int = 0,
        end_seq: int | None = None,
    ) -> None:
        self.prefix = str(prefix)
        self.postfix = postfix
        self.start_seq = start_seq
        self.streams = {"data": TensorSpec(dim=num_inputs), "classes": TensorSpec(dim=num_outputs, sparse=True)}
        if end_seq is None:
            end_seq = next(i for i in itertools.count(start_seq) if not self._file(i, "data").is_file())
        self.num_seqs = end_seq - start_seq
        if self.num_seqs < 1:
            raise DataError(f"{self._file(start_seq, 'data')}: no such file")

    def _file(self, number: int, kind: str) -> Path:
        return Path(f"{self.prefix}{number}.{kind}{self.postfix}")

    def __len__(self) -> int:
        return self.num_seqs

    def seq_tags(self, indices: Indices) -> list[str]:
        return [f"seq-{self.start_seq + int(i)}" for i in indices]

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        stream_spec(self, stream)
        return self._lengths[stream]

    @cached_property
    def _lengths(self) -> dict[str, np.ndarray]:
        examples = self.read(range(len(self)))
        return {name: np.array([len(a) for a in arrays], dtype=np.int64) for name, arrays in examples.streams.items()}

    def read(self, indices: Indices) -> Examples:
        numbers = [self.start_seq + int(i) for i in indices]
        data = [self._load(number, "data", "data", 2) for number in numbers]
        classes = [self._load(number, "targets", "classes", 1) for number in numbers]
        return Examples(self.seq_tags(indices), {"data": data, "classes": classes})

    def _load(self, number: int, kind: str, stream: str, ndim: int) -> np.ndarray:
        path = self._file(number, kind)
        try:
            array = np.loadtxt(path, ndmin=ndim)  # type: ignore[call-overload]
        except (OSError, EOFError, ValueError) as error:
            raise DataError(f"{path}: {error}") from error
        if kind == "targets":  # savetxt writes labels as 1.000e+00 by default
            wrong = np.flatnonzero(array.ravel() % 1 != 0)
            if len(wrong):
                raise DataError(f"{path}: label {array.ravel()[wrong[0]]} at {wrong[0]}, expected whole numbers")
            array = array.astype(np.int64)
        return checked_array(array, self.streams[stream], f"{path}, stream {stream!r}")
