"""Reading rows of one data set of an HDF file: in blocks, and from memory the second time.

A block of rows is read when one of its rows is first asked for, and stays. The memory is shared between a process and
the loader workers it forks: who reads a block first reads it for all.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

import h5py
import numpy as np

from returnn_hydra.data.hdf_raw import raw_rows

BLOCK_BYTES = 4 << 20
"""Read at once into the cache."""
GAP_BYTES = 16 << 10
"""Without a cache: sequences that are closer than this are read together, with what is between them."""
RUN_BYTES = 64 << 20
"""... up to so much."""


class RowCache:
    """Room for all rows of a data set; memory is only taken for blocks that were read."""

    def __init__(
        self, num_rows: int, row_shape: tuple[int, ...], dtype: np.dtype, chunk_rows: int = 1, shared: bool = False
    ) -> None:
        """
        Args:
            shared: with the processes that are forked later. (Else they do without; memory of one process is cheaper.)
        """
        self.owner = None if shared else os.getpid()
        row_bytes = max(int(dtype.itemsize * np.prod(row_shape, dtype=np.int64)), 1)
        self.block_rows = max(BLOCK_BYTES // (row_bytes * chunk_rows), 1) * chunk_rows
        self.num_rows = num_rows
        shape = (num_rows, *row_shape)
        self.complete = False
        """All blocks are there."""
        self.rows = np.frombuffer(_zeros(num_rows * row_bytes, shared), dtype, int(np.prod(shape))).reshape(shape)
        num_blocks = -(-num_rows // self.block_rows)
        self.loaded = np.frombuffer(_zeros(num_blocks, shared), np.bool_, num_blocks)

    def is_mine(self) -> bool:
        """Whether this process may use it."""
        return self.owner in (None, os.getpid())

    def get(self, source: Source, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop-1, as a view of the cache."""
        first, last = start // self.block_rows, (stop - 1) // self.block_rows
        for block in range(first, last + 1):
            if not self.loaded[block]:
                a, b = block * self.block_rows, min((block + 1) * self.block_rows, self.num_rows)
                source.copy_block(self.rows[a:b], a, b)
                self.loaded[block] = True
        return self.rows[start:stop]


def _zeros(num_bytes: int, shared: bool) -> mmap.mmap:
    """Memory that is taken when it is first written to."""
    sharing = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
    return mmap.mmap(-1, max(num_bytes, 1), flags=mmap.MAP_ANONYMOUS | sharing)


class Source:
    """The rows of an open data set: read by HDF5, or past it where the file has them as they are."""

    def __init__(self, path: str, dataset: h5py.Dataset) -> None:
        self.dataset = dataset
        self.raw = raw_rows(path, dataset)

    def copy_block(self, out: np.ndarray, start: int, stop: int) -> None:
        """Rows start .. stop-1 into `out`."""
        if self.raw is not None:
            self.raw.copy_block(out, start, stop)
        else:
            self.dataset.read_direct(out, np.s_[start:stop])

    def read(self, starts: Sequence[int], lengths: Sequence[int], cache: RowCache | None) -> list[np.ndarray]:
        """The rows starts[i] .. starts[i]+lengths[i]-1 for every i; they may be views of shared memory.

        Raises:
            OSError: the file is damaged.
        """
        if self.raw is not None:
            self.raw.check()
        if cache is not None and cache.is_mine():
            cache.complete = cache.complete or bool(cache.loaded.all())
            if cache.complete:
                return [cache.rows[start : start + length] for start, length in zip(starts, lengths, strict=True)]
            return [
                cache.get(self, start, start + length) if length else cache.rows[:0]
                for start, length in zip(starts, lengths, strict=True)
            ]
        if self.raw is not None:
            return [self.raw.get(start, start + length) for start, length in zip(starts, lengths, strict=True)]
        return self._read_runs(starts, lengths)

    def _read_runs(self, starts: Sequence[int], lengths: Sequence[int]) -> list[np.ndarray]:
        """By HDF5: sequences that are near each other in the file are read together."""
        row_shape = self.dataset.shape[1:]
        row_bytes = max(int(self.dataset.dtype.itemsize * np.prod(row_shape, dtype=np.int64)), 1)
        gap, longest_run = GAP_BYTES // row_bytes, RUN_BYTES // row_bytes
        order = sorted((i for i, length in enumerate(lengths) if length), key=starts.__getitem__)
        results = [np.empty((0, *row_shape), self.dataset.dtype)] * len(starts)
        done = 0
        while done < len(order):
            begin = starts[order[done]]
            end = begin + lengths[order[done]]
            run = done + 1
            while run < len(order):
                start, stop = starts[order[run]], starts[order[run]] + lengths[order[run]]
                if start - end > gap or stop - begin > longest_run:
                    break
                end = max(end, stop)
                run += 1
            rows = self.dataset[begin:end]
            for i in order[done:run]:
                results[i] = rows[starts[i] - begin : starts[i] - begin + lengths[i]]
            done = run
        return results
