"""Keeps what was read of another data set in memory: audio is decoded, and features computed, in the first epoch only.

Legend: N sequences, T frames.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.checks import did_you_mean
from returnn_hydra.data.dataset import DataError, Dataset, Examples
from returnn_hydra.data.memory import available_memory
from returnn_hydra.data.views import Indices, WrappedDataset, as_array, renewed

MODES = ("auto", "ram", "none")


@dataclass
class _Store:
    """All arrays of one stream, one sequence after the other."""

    rows: np.ndarray
    """(sum of T, ...), or (N, ...) for a stream without a time axis."""
    starts: np.ndarray | None
    """First row of every sequence and the end of the last, (N + 1,); None: no time axis."""

    def put(self, index: int, array: np.ndarray) -> None:
        self.rows[self._where(index)] = array

    def get(self, index: int) -> np.ndarray:
        return np.array(self.rows[self._where(index)])

    def _where(self, index: int) -> int | slice:
        return index if self.starts is None else slice(self.starts[index], self.starts[index + 1])


class CachedDataset(WrappedDataset):
    """Another data set, each of whose sequences is read once.

    Processes that are forked share the memory. Streams whose lengths are not known before reading, text, and streams
    with several axes of unknown size are not kept, nor is a data set that is another one in every epoch.

    Args:
        dataset: the sequences.
        cache: ram: keep all; none: nothing; auto: all, if it needs less than `cache_fraction` of the free memory.
        cache_fraction: see above.
    """

    def __init__(self, dataset: Dataset, cache: str = "auto", cache_fraction: float = 0.3) -> None:
        super().__init__(dataset)
        if cache not in MODES:
            raise DataError(f"cache={cache!r}{did_you_mean(cache, MODES)}")
        self.cache = cache
        self.cache_fraction = cache_fraction
        self._wanted = list(self.streams)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_stores", "_loaded")}

    @cached_property
    def _stores(self) -> dict[str, _Store]:
        """Memory for every stream that is kept."""
        if self.cache == "none":
            return {}
        lengths = {name: self._kept_lengths(name) for name in self._wanted}
        kept = {name: rows for name, rows in lengths.items() if rows is not None}
        size = sum(int(rows.sum()) * _row_bytes(self.streams[name]) for name, rows in kept.items())
        if self.cache == "auto" and size > self.cache_fraction * available_memory():
            return {}
        return {name: self._store(self.streams[name], rows) for name, rows in kept.items()}

    def _kept_lengths(self, stream: str) -> np.ndarray | None:
        """Rows of every sequence, (N,); None if the stream can't be kept."""
        spec = self.streams[stream]
        if spec.dtype == "string" or (spec.shape or ()).count(None) > 1 or spec.time_axis not in (None, 0):
            return None
        return self.dataset.seq_lengths(stream) if spec.has_time else np.ones(len(self), dtype=np.int64)

    def _store(self, spec: TensorSpec, rows: np.ndarray) -> _Store:
        shape = _row_shape(spec)
        memory = mmap.mmap(-1, max(int(rows.sum()) * _row_bytes(spec), 1))
        flat = np.frombuffer(memory, dtype=spec.dtype, count=int(rows.sum()) * math.prod(shape))
        return _Store(flat.reshape(-1, *shape), np.concatenate([[0], np.cumsum(rows)]) if spec.has_time else None)

    @cached_property
    def _source(self) -> Dataset:
        """The data set with the streams that are kept."""
        return self.dataset.with_streams(list(self._stores))

    @cached_property
    def _others(self) -> Dataset:
        """The data set with the streams that are not kept."""
        return self.dataset.with_streams([name for name in self._wanted if name not in self._stores])

    @cached_property
    def _loaded(self) -> np.ndarray:
        """Which sequences are kept by now, (N,) bool, shared by forked processes."""
        return np.frombuffer(mmap.mmap(-1, max(len(self), 1)), dtype=bool, count=len(self))

    @property
    def is_block_copy(self) -> bool:
        return set(self._wanted) == set(self._stores) and bool(self._loaded.all())

    def share_memory(self) -> None:
        super().share_memory()
        self._stores, self._loaded  # noqa: B018 (made now, before the processes)

    def read(self, indices: Indices) -> Examples:
        indices = as_array(indices)
        if not self._stores:
            return self._others.read(indices)
        missing = np.unique(indices[~self._loaded[indices]])
        if len(missing):
            found = self._source.read(missing)
            for name, store in self._stores.items():
                for index, array in zip(missing.tolist(), found.streams[name], strict=True):
                    store.put(index, array)
            self._loaded[missing] = True
        streams = {name: [store.get(i) for i in indices.tolist()] for name, store in self._stores.items()}
        if len(self._stores) < len(self._wanted):
            others = self._others.read(indices).streams
            streams |= {name: others[name] for name in self._wanted if name not in self._stores}
        return Examples(self.dataset.seq_tags(indices), streams)

    def with_streams(self, names: Sequence[str]) -> Dataset:
        return renewed(self, _wanted=[name for name in self.streams if name in names])

    def at_epoch(self, epoch: int) -> Dataset:
        dataset = self.dataset.at_epoch(epoch)
        return self if dataset is self.dataset else dataset.with_streams(self._wanted)


def _row_shape(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(size for size in spec.shape or () if size is not None)


def _row_bytes(spec: TensorSpec) -> int:
    return math.prod(_row_shape(spec)) * np.dtype(spec.dtype).itemsize
