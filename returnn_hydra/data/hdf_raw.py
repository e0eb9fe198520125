"""Reading the numbers of an HDF data set past the HDF library, where they stand in the file as they are.

Data sets without filters (no compression, no checksum), as RETURNN writes them, are plain bytes at places that HDF5
tells: one piece, or one for each chunk. Copying them out of a memory map takes a third of the time of HDF5.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from array import array

import h5py
import numpy as np

POPULATE_READ, POPULATE_WRITE = 22, 23
"""Linux's madvise options of these names (since 5.14): map pages at once, much cheaper than one by one when touched."""


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
        self.piece_row = np.dtype((np.void, self.dtype.itemsize * int(np.prod(chunk[1:]))))
        """The numbers of a row that stand together: copied as one lump."""
        self.whole_rows = len(self.offsets[0]) == 1

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
            offset = self.offsets[first][0] + (start - first * rows) * self.piece_row.itemsize
            return np.ndarray((stop - start, *self.shape[1:]), self.dtype, self._map, offset)
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        self.copy(out, start, stop)
        return out

    def will_read(self, start: int, stop: int) -> None:
        """Map the part of the file that holds these rows."""
        rows = self.chunk[0]
        places = self.offsets[start // rows : (stop - 1) // rows + 1]
        first, last = min(map(min, places)), max(map(max, places))
        advise(self._map, POPULATE_READ, first, min(last + rows * self.piece_row.itemsize, len(self._map)))

    def copy(self, out: np.ndarray, start: int, stop: int) -> None:
        """Rows start .. stop-1 into `out`, which must be one piece of memory."""
        target = out.reshape(stop - start, -1).view(self.piece_row)  # (rows, pieces of a row)
        rows = self.chunk[0]
        for piece in range(start // rows, (stop - 1) // rows + 1):
            begin = piece * rows
            a, b = max(start, begin), min(stop, begin + rows)
            skip = (a - begin) * self.piece_row.itemsize
            for column, offset in enumerate(self.offsets[piece]):
                source = np.ndarray(b - a, self.piece_row, self._map, offset + skip)
                target[a - start : b - start, column] = source


def advise(memory: mmap.mmap, advice: int, start: int, stop: int) -> None:
    """Tell the system what comes; it may not know the advice."""
    begin = start // mmap.PAGESIZE * mmap.PAGESIZE
    with contextlib.suppress(OSError, ValueError):
        memory.madvise(advice, begin, stop - begin)


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
    whole_rows = dataset.chunks[1:] == dataset.shape[1:]
    if not whole_rows and (dataset.ndim != 2 or dataset.shape[1] % dataset.chunks[1]):
        return None
    grid = tuple(-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True))
    corners, places = array("q"), array("q")  # not lists of objects: many would set off the garbage collector

    def note(info: h5py.h5d.StoreInfo) -> None:
        corners.extend(info.chunk_offset)
        places.append(info.byte_offset)

    dataset.id.chunk_iter(note)
    offsets = np.full(grid, -1, np.int64)
    corner = np.frombuffer(corners, np.int64).reshape(-1, dataset.ndim) if places else np.empty((0, dataset.ndim), int)
    offsets[tuple((corner // dataset.chunks).T)] = places
    if (offsets < 0).any():  # never written: HDF5 fills it in
        return None
    return RawRows(path, dataset, dataset.chunks, offsets)
