"""Reading the numbers of an HDF data set past the HDF library, where they stand in the file as they are.

Data sets without filters (no compression, no checksum), as RETURNN writes them, are plain bytes at places that HDF5
tells: one piece, or one for each chunk. Copying them out of a memory map takes a third of the time of HDF5.
"""

from __future__ import annotations

import mmap
import os
from operator import floordiv
from typing import Any

import h5py
import numpy as np


class RawRows:
    """The rows of a data set of which every byte is in the file. Made by `raw_rows`."""

    def __init__(self, path: str, dataset: h5py.Dataset, chunk: tuple[int, ...], offsets: np.ndarray) -> None:
        """
        Args:
            chunk: shape of a piece.
            offsets: place of every piece in the file, by its place in the grid of pieces, (rows, columns, ...).
        """
        self._file = open(path, "rb")  # noqa: SIM115 - stays open as long as the map
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self.shape = dataset.shape
        self.dtype = dataset.dtype
        self.chunk = chunk
        self.offsets = offsets.reshape(len(offsets), -1).tolist()
        self.columns = [_columns(place, chunk[1:], self.shape[1:]) for place in np.ndindex(offsets.shape[1:])]
        """For every piece of a row: where its numbers go, and which of them (the last piece may reach over the end)."""
        self.piece_row_bytes = int(self.dtype.itemsize * np.prod(chunk[1:], dtype=np.int64))
        self.whole_rows = offsets[0].size == 1 and chunk[1:] == self.shape[1:]

    def check(self) -> None:
        """Before a read: the file may have been cut meanwhile, and touching a lost page would end the process.

        Raises:
            OSError: it has.
        """
        size = os.fstat(self._file.fileno()).st_size
        if size < len(self._map):
            raise OSError(f"the file was cut from {len(self._map)} to {size} bytes while it was in use")

    def get(self, start: int, stop: int) -> np.ndarray:
        """Rows start .. stop-1: a view of the file where that is possible, else a copy."""
        if start == stop:
            return np.empty((0, *self.shape[1:]), self.dtype)
        rows = self.chunk[0]
        first = start // rows
        if self.whole_rows and stop <= (first + 1) * rows:
            offset = self.offsets[first][0] + (start - first * rows) * self.piece_row_bytes
            return np.ndarray((stop - start, *self.shape[1:]), self.dtype, self._map, offset)
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        self.copy(out, start, stop)
        return out

    def copy(self, out: np.ndarray, start: int, stop: int) -> None:
        """Rows start .. stop-1 into `out`."""
        rows = self.chunk[0]
        for piece in range(start // rows, (stop - 1) // rows + 1):
            begin = piece * rows
            a, b = max(start, begin), min(stop, begin + rows)
            skip = (a - begin) * self.piece_row_bytes
            target = out[a - start : b - start]
            shape = (b - a, *self.chunk[1:])
            for offset, (columns, inside) in zip(self.offsets[piece], self.columns, strict=True):
                source = np.ndarray(shape, self.dtype, self._map, offset + skip)
                target[columns] = source if inside is None else source[inside]


def _columns(place: tuple[int, ...], chunk: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Any, Any]:
    starts = [i * size for i, size in zip(place, chunk, strict=True)]
    sizes = [min(size, whole - start) for start, size, whole in zip(starts, chunk, shape, strict=True)]
    columns = (slice(None), *(slice(start, start + size) for start, size in zip(starts, sizes, strict=True)))
    whole = all(size == full for size, full in zip(sizes, chunk, strict=True))
    return columns, None if whole else (slice(None), *(slice(size) for size in sizes))


def raw_rows(path: str, dataset: h5py.Dataset) -> RawRows | None:
    """A raw reader; None where the numbers are not in the file as they are, so that HDF5 must read them."""
    properties = dataset.id.get_create_plist()
    if properties.get_nfilters() or dataset.dtype.kind not in "iufb" or not dataset.size:
        return None
    if dataset.file.userblock_size:
        return None
    layout = properties.get_layout()
    if layout == h5py.h5d.CONTIGUOUS:
        offset = dataset.id.get_offset()
        return None if offset is None else RawRows(path, dataset, dataset.shape, np.full((1,) * dataset.ndim, offset))
    if layout != h5py.h5d.CHUNKED:
        return None
    grid = tuple(-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True))
    offsets = np.full(grid, -1, np.int64)
    chunk = dataset.chunks

    def note(info: h5py.h5d.StoreInfo) -> None:  # keeps no objects: many of them would set off the garbage collector
        offsets[tuple(map(floordiv, info.chunk_offset, chunk))] = info.byte_offset

    dataset.id.chunk_iter(note)
    if (offsets < 0).any():  # never written: HDF5 fills it in
        return None
    return RawRows(path, dataset, chunk, offsets)
