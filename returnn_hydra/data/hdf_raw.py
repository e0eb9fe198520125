"""Reading the numbers of an HDF data set past the HDF library, where they stand in the file as they are.

Data sets without compression are plain bytes at places that HDF5 tells: one piece, or one for each chunk. RETURNN
writes them so; our writer adds a checksum behind each chunk, of whole rows. Reading these places takes a third of the
time of HDF5.
"""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import h5py
import numpy as np

from returnn_hydra.data.fletcher32 import GROUP, MOST_BYTES, fletcher32
from returnn_hydra.data.hdf_chunks import chunk_table


class RawRows:
    """The rows of a data set of which every byte is in the file. Made by `raw_rows`."""

    checksum_bytes = 0
    """Behind each piece."""

    def __init__(self, file: BinaryIO, memory: mmap.mmap, dataset: h5py.Dataset, offsets: np.ndarray) -> None:
        """
        Args:
            memory: the bytes of the file.
            offsets: place of every piece (chunk) in the file, by its place in the grid of pieces, (rows, columns, ...).
        """
        self._file = file
        self._map = memory
        self.shape = dataset.shape
        self.dtype = dataset.dtype
        self.chunk = chunk = dataset.chunks or dataset.shape
        """Shape of a piece."""
        self.offsets = offsets.reshape(len(offsets), -1)
        """(pieces along the rows, pieces of a row)"""
        self.piece_row = np.dtype((np.void, self.dtype.itemsize * int(np.prod(chunk[1:]))))
        """The numbers of a row that stand together: copied as one lump."""
        self.whole_rows = self.offsets.shape[1] == 1
        size = chunk[0] * self.piece_row.itemsize + self.checksum_bytes
        self._together = (np.diff(self.offsets) == size).all(axis=1)
        """By piece along the rows: whether the pieces of its rows stand one behind the other."""
        self._follows = (np.diff(self.offsets[:, 0]) == size * self.offsets.shape[1]) & (
            self._together[1:] & self._together[:-1]
        )
        """Whether the next piece along the rows stands behind it."""

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
        first, last = start // rows, (stop - 1) // rows
        if self.whole_rows and first == last:
            offset = int(self.offsets[first, 0]) + (start - first * rows) * self.piece_row.itemsize
            return np.ndarray((stop - start, *self.shape[1:]), self.dtype, self._map, offset)
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        target = self._lumps(out)
        for piece, places in enumerate(self.offsets[first : last + 1].tolist(), first):
            begin = piece * rows
            a, b = max(start, begin), min(stop, begin + rows)
            skip = (a - begin) * self.piece_row.itemsize
            for column, offset in enumerate(places):
                target[a - start : b - start, column] = np.ndarray(b - a, self.piece_row, self._map, offset + skip)
        return out

    def copy_block(self, out: np.ndarray, start: int, stop: int) -> None:
        """Rows start .. stop-1 into `out`, which must be one piece of memory; what stands together is read at once.

        Raises:
            OSError: the file has become shorter.
        """
        rows = self.chunk[0]
        target = self._lumps(out)
        for first, end in self._runs(start // rows, -(-stop // rows)):
            a, b = max(start, first * rows), min(stop, end * rows)
            part = target[a - start : b - start]
            if self.whole_rows:
                self._read([part], int(self.offsets[first, 0]) + (a - first * rows) * self.piece_row.itemsize)
            else:
                pieces = self._read_pieces(first, end).transpose(0, 2, 1)  # (pieces, rows, pieces of a row)
                if len(part) == (end - first) * rows:
                    part.reshape(pieces.shape)[...] = pieces
                else:
                    part[...] = pieces.reshape(-1, part.shape[1])[a - first * rows : b - first * rows]

    def _lumps(self, out: np.ndarray) -> np.ndarray:
        """(rows, pieces of a row)"""
        return out.reshape(len(out), -1).view(self.piece_row)

    def _runs(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Cut pieces first .. end-1 (along the rows) where the next one does not stand behind the one before."""
        cuts = np.nonzero(~self._follows[first : end - 1])[0] + first + 1
        bounds = [first, *cuts.tolist(), end]
        return itertools.pairwise(bounds)

    def _read_pieces(self, first: int, end: int) -> np.ndarray:
        """Whole pieces of a run, (pieces, pieces of a row, rows)."""
        pieces = np.empty((end - first, self.offsets.shape[1], self.chunk[0]), self.piece_row)
        if self._together[first]:
            self._read([pieces], int(self.offsets[first, 0]))
        else:
            for column, offset in enumerate(self.offsets[first].tolist()):
                self._read([pieces[0, column]], offset)
        return pieces

    def _read(self, outs: Sequence[np.ndarray], offset: int) -> None:
        """Fill these arrays, one behind the other, with the bytes of the file from `offset` on."""
        left = [out.reshape(-1).view(np.uint8).data for out in outs]
        while left:
            done = os.preadv(self._file.fileno(), left, offset)
            if not done:
                raise OSError(f"the file ends before byte {offset}: it was cut while it was in use")
            offset += done
            while left and done >= len(left[0]):
                done -= len(left.pop(0))
            if done:
                left[0] = left[0][done:]


class CheckedRows(RawRows):
    """The same for chunks of whole rows with a checksum (fletcher32) behind each, which is looked at when a chunk is
    read for the first time, or into a block."""

    checksum_bytes = 4

    def __init__(self, file: BinaryIO, memory: mmap.mmap, dataset: h5py.Dataset, offsets: np.ndarray) -> None:
        super().__init__(file, memory, dataset, offsets)
        self._right = np.zeros(len(offsets), np.bool_)
        """By chunk: whether its checksum was seen to be right."""

    def get(self, start: int, stop: int) -> np.ndarray:
        first, end = start // self.chunk[0], -(-stop // self.chunk[0])
        if not self._right[first:end].all():
            self._read_checked(np.empty((end - first, self.chunk[0] * self.piece_row.itemsize), np.uint8), first)
        return super().get(start, stop)

    def copy_block(self, out: np.ndarray, start: int, stop: int) -> None:
        rows, row_bytes = self.chunk[0], self.piece_row.itemsize
        target = out.reshape(-1).view(np.uint8)
        last = -(-stop // rows)
        for first in range(start // rows, last, GROUP):
            end = min(first + GROUP, last)
            a, b = max(start, first * rows), min(stop, end * rows)
            part = target[(a - start) * row_bytes : (b - start) * row_bytes]
            if b - a == (end - first) * rows:
                self._read_checked(part.reshape(end - first, -1), first)
            else:
                chunks = np.empty((end - first, rows * row_bytes), np.uint8)
                self._read_checked(chunks, first)
                part[...] = chunks.reshape(-1)[(a - first * rows) * row_bytes : (b - first * rows) * row_bytes]

    def _read_checked(self, out: np.ndarray, first: int) -> None:
        """Chunks from `first` on into `out`, (chunks, bytes).

        Raises:
            OSError: a checksum is wrong.
        """
        stored = np.empty((len(out), self.checksum_bytes), np.uint8)
        for a, b in self._runs(first, first + len(out)):
            parts = [part for i in range(a - first, b - first) for part in (out[i], stored[i])]
            self._read(parts, int(self.offsets[a, 0]))
        wrong = np.nonzero((fletcher32(out) != stored.view("<u2") % 65535).any(axis=1))[0]
        if len(wrong):
            row = (first + int(wrong[0])) * self.chunk[0]
            raise OSError(f"the checksum (fletcher32) of the {self.chunk[0]} rows from {row} on is wrong")
        self._right[first : first + len(out)] = True


def raw_rows(path: str, dataset: h5py.Dataset) -> RawRows | None:
    """A raw reader; None where the numbers are not in the file as they are, so that HDF5 must read them."""
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    if filters not in ([], [h5py.h5z.FILTER_FLETCHER32]) or dataset.dtype.kind not in "iufb" or not dataset.size:
        return None
    if dataset.file.userblock_size:
        return None
    layout = properties.get_layout()
    if layout not in (h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED):
        return None
    kind = CheckedRows if filters else RawRows
    num_bytes = int(np.prod(dataset.chunks or 0)) * dataset.dtype.itemsize
    whole_rows = layout == h5py.h5d.CONTIGUOUS or dataset.chunks[1:] == dataset.shape[1:]
    if not whole_rows and (filters or dataset.ndim != 2 or dataset.shape[1] % dataset.chunks[1]):
        return None
    if filters and (num_bytes % 2 or num_bytes > MOST_BYTES):
        return None
    file = open(path, "rb")  # noqa: SIM115 - stays open as long as the map
    memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if layout == h5py.h5d.CHUNKED:
        offsets = chunk_table(memory, dataset, num_bytes + kind.checksum_bytes)
    else:
        offset = dataset.id.get_offset()
        offsets = None if offset is None else np.full((1,) * dataset.ndim, offset)
    return None if offsets is None else kind(file, memory, dataset, offsets)
