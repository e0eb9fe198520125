"""Sequences that are in memory, made of nothing, or in numpy's text files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.checks import checked_streams, specs_from_options, stream_spec
from returnn_hydra.data.dataset import DataError, Dataset, Examples
from returnn_hydra.data.views import Indices, as_array


class StaticDataset(Dataset):
    """Sequences given as arrays.

    Args:
        data: one {stream: array} per sequence.
        streams: specs; default: from the first sequence (its integers must then have a spec, for nothing says how many
            classes there are).
        seq_tags: default: seq-0, seq-1, ...

    Raises:
        DataError: an array is not what its stream's spec says, or tags are missing or twice there.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        streams: Mapping[str, TensorSpec | Mapping[str, Any]] | None = None,
        seq_tags: Sequence[str] | None = None,
    ) -> None:
        if not data and streams is None:
            raise DataError("StaticDataset: no data and no streams")
        tags = list(seq_tags) if seq_tags is not None else [f"seq-{i}" for i in range(len(data))]
        if len(tags) != len(data) or len(set(tags)) != len(tags):
            raise DataError(f"StaticDataset: {len(data)} sequences need as many different tags, got {len(set(tags))}")
        self.streams = specs_from_options(streams) if streams is not None else _guessed_specs(data[0])
        self._tags = tags
        self._data = [
            checked_streams(seq, self.streams, f"seq_tag {tag!r}") for seq, tag in zip(data, tags, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._data)

    def seq_tags(self, indices: Indices) -> list[str]:
        return [self._tags[i] for i in indices]

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        axis = stream_spec(self, stream).time_axis
        if axis is None:
            return None
        return np.array([seq[stream].shape[axis] for seq in self._data], dtype=np.int64)

    @property
    def is_block_copy(self) -> bool:
        return True

    def read(self, indices: Indices) -> Examples:
        return Examples(self.seq_tags(indices), {name: [self._data[i][name] for i in indices] for name in self.streams})


def _guessed_specs(seq: Mapping[str, Any]) -> dict[str, TensorSpec]:
    specs = {}
    for name, value in seq.items():
        array = np.asarray(value)
        if array.dtype.kind in "iu":
            raise DataError(
                f"StaticDataset: stream {name!r} holds integers and needs a spec, e.g. {{sparse: true, dim: 10}}"
            )
        shape = (None, *array.shape[1:]) if array.ndim else ()
        specs[name] = TensorSpec(shape=shape, dtype="string" if array.dtype.kind in "UO" else array.dtype.name)
    return specs


class AnythingDataset(Dataset):
    """Sequences of zeros: what stands in where data of some shape is wanted, whatever it is.

    Inside of a MetaDataset it has every sequence that the control data set has.

    Args:
        streams: specs.
        num_seqs: number of sequences.
        seq_len: frames of every axis without a fixed size.
    """

    def __init__(
        self, streams: Mapping[str, TensorSpec | Mapping[str, Any]], num_seqs: int = 1000, seq_len: int = 1
    ) -> None:
        self.streams = specs_from_options(streams)
        self.num_seqs = num_seqs
        self.seq_len = seq_len

    def __len__(self) -> int:
        return self.num_seqs

    def seq_tags(self, indices: Indices) -> list[str]:
        return [f"seq-{i}" for i in indices]

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        return np.full(self.num_seqs, self.seq_len, dtype=np.int64) if stream_spec(self, stream).has_time else None

    @property
    def is_block_copy(self) -> bool:
        return True

    def read(self, indices: Indices) -> Examples:
        arrays = {name: empty_array(spec, self.seq_len) for name, spec in self.streams.items()}
        num = len(as_array(indices))
        return Examples(
            self.seq_tags(indices), {name: [array.copy() for _ in range(num)] for name, array in arrays.items()}
        )


def empty_array(spec: TensorSpec, seq_len: int = 0) -> np.ndarray:
    """Zeros, or empty text, with `seq_len` frames."""
    assert spec.shape is not None
    shape = [seq_len if size is None else size for size in spec.shape]
    return np.zeros(shape, dtype=np.str_ if spec.dtype == "string" else spec.dtype)
