"""Sequences cut into pieces of equal length, which may overlap.

Legend: N sequences, C chunks, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from returnn_hydra.data.checks import stream_spec
from returnn_hydra.data.dataset import DataError, Dataset, Examples
from returnn_hydra.data.views import ComposedDataset, Indices, as_array, renewed, select


class ChunkDataset(ComposedDataset):
    """Chunks of the sequences of another data set, as sequences of their own.

    A sequence of length T gives the chunks that begin at 0, step, 2 step, ... below T; the last ones may be shorter.
    Streams without a size are repeated whole. A chunk's tag is `tag:start-end`, with the frames of the first stream
    that is cut.

    Args:
        dataset: the sequences.
        chunk_size: frames, a number for all streams with a time axis or {stream: number}.
        chunk_step: frames from one beginning to the next, likewise; default: chunk_size.
        min_chunk_size: shorter chunks are dropped, likewise.

    Raises:
        DataError: lengths are not known, or the streams of a sequence give different numbers of chunks.
    """

    def __init__(
        self,
        dataset: Dataset,
        chunk_size: int | Mapping[str, int],
        chunk_step: int | Mapping[str, int] | None = None,
        min_chunk_size: int | Mapping[str, int] = 0,
    ) -> None:
        self.dataset = dataset
        self.streams = dataset.streams
        self.sizes = _per_stream(dataset, chunk_size, "chunk_size")
        self.steps = dict(self.sizes) if chunk_step is None else _per_stream(dataset, chunk_step, "chunk_step")
        self.min_sizes = dict.fromkeys(self.sizes, 0) | _per_stream(dataset, min_chunk_size, "min_chunk_size")
        if set(self.steps) != set(self.sizes):
            raise DataError(
                f"ChunkDataset: chunk_size is for {sorted(self.sizes)}, chunk_step for {sorted(self.steps)}"
            )
        if bad := [name for name in self.sizes if self.sizes[name] < 1 or self.steps[name] < 1]:
            raise DataError(f"ChunkDataset: size and step must be at least 1, stream {bad[0]!r}")
        if bad := [name for name in self.sizes if dataset.streams[name].time_axis != 0]:
            raise DataError(f"ChunkDataset: stream {bad[0]!r} has no time axis in front to cut along")

    @cached_property
    def _chunks(self) -> tuple[np.ndarray, np.ndarray]:
        """The sequence of every chunk and the number of the chunk in it, (C,) each."""
        counts: np.ndarray | None = None
        short = np.zeros(0, dtype=bool)
        first = ""
        for name in self.sizes:
            lengths = self._seq_lengths(name)
            here = -(-lengths // self.steps[name])
            if counts is None:
                counts, first = here, name
                seqs, numbers = _enumerate(counts)
                short = np.zeros(len(seqs), dtype=bool)
            elif not np.array_equal(counts, here):
                bad = int(np.flatnonzero(counts != here)[0])
                raise DataError(
                    f"seq_tag {self.dataset.seq_tags([bad])[0]!r}: stream {first!r} gives {counts[bad]} chunks, "
                    f"{name!r} {here[bad]} (of {lengths[bad]} frames)"
                )
            left = lengths[seqs] - numbers * self.steps[name]
            short |= np.minimum(left, self.sizes[name]) < self.min_sizes[name]
        return seqs[~short], numbers[~short]

    def _seq_lengths(self, stream: str) -> np.ndarray:
        lengths = self.dataset.seq_lengths(stream)
        if lengths is None:
            raise DataError(f"ChunkDataset: the lengths of stream {stream!r} are not known before reading")
        return lengths

    def __len__(self) -> int:
        return len(self._chunks[0])

    def seq_tags(self, indices: Indices) -> list[str]:
        indices = as_array(indices)
        return self._tags(self.dataset.seq_tags(self._chunks[0][indices]), indices)

    def _tags(self, tags: list[str], indices: np.ndarray) -> list[str]:
        name = next(iter(self.sizes))
        starts = self._chunks[1][indices] * self.steps[name]
        ends = starts + self._lengths_of(name, indices)
        return [f"{tag}:{start}-{end}" for tag, start, end in zip(tags, starts, ends, strict=True)]

    def _lengths_of(self, stream: str, indices: np.ndarray) -> np.ndarray:
        seqs, numbers = self._chunks[0][indices], self._chunks[1][indices]
        return np.minimum(self._seq_lengths(stream)[seqs] - numbers * self.steps[stream], self.sizes[stream])

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        if stream not in self.sizes:
            return select(self.dataset.seq_lengths(stream), self._chunks[0])
        return self._lengths_of(stream, np.arange(len(self)))

    def read(self, indices: Indices) -> Examples:
        indices = as_array(indices)
        seqs, where = np.unique(self._chunks[0][indices], return_inverse=True)
        examples = self.dataset.read(seqs)
        numbers = self._chunks[1][indices].tolist()
        streams = {
            name: [self._cut(name, arrays[i], k) for i, k in zip(where.tolist(), numbers, strict=True)]
            for name, arrays in examples.streams.items()
        }
        return Examples(self._tags([examples.seq_tags[i] for i in where.tolist()], indices), streams)

    def _cut(self, stream: str, array: np.ndarray, number: int) -> np.ndarray:
        if stream not in self.sizes:
            return array
        start = number * self.steps[stream]
        return array[start : start + self.sizes[stream]]

    def with_streams(self, names: Sequence[str]) -> Dataset:
        return renewed(self, dataset=self.dataset.with_streams(names))

    def at_epoch(self, epoch: int) -> Dataset:
        dataset = self.dataset.at_epoch(epoch)
        return self if dataset is self.dataset else renewed(self, dataset=dataset)


def _enumerate(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[2, 0, 3] -> [0, 0, 2, 2, 2], [0, 1, 0, 1, 2]."""
    owners = np.repeat(np.arange(len(counts)), counts)
    starts = np.cumsum(counts) - counts
    return owners, np.arange(len(owners)) - starts[owners]


def _per_stream(dataset: Dataset, value: int | Mapping[str, int], option: str) -> dict[str, int]:
    if isinstance(value, int):
        return {name: value for name, spec in dataset.streams.items() if spec.has_time}
    for stream in value:
        stream_spec(dataset, stream, f"ChunkDataset, {option}: the data set")
    return dict(value)
