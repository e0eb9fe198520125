"""Where the chunks of an HDF data set stand in the file.

HDF5 tells them one by one, a microsecond for each. In the layout that h5py writes by default they are in a tree of
small tables ("version 1 B-tree" in the HDF5 file format specification, sections III.A.1, IV.A.1.a and IV.A.2.i), which
numpy reads several times as fast. What looks in any way different is left to HDF5.
"""

from __future__ import annotations

import math
import mmap
import struct
from array import array
from typing import NamedTuple

import h5py
import numpy as np

LAYOUT, CONTINUATION = 8, 16
"""Kinds of messages in an object header."""


class Chunks(NamedTuple):
    """Some chunks of a data set."""

    corners: np.ndarray
    """First row and column of every chunk, (chunks, axes)."""
    places: np.ndarray
    """Its byte offset, (chunks,)."""
    sizes: np.ndarray
    """Its bytes in the file, (chunks,)."""
    skipped: np.ndarray
    """Bits of the filters that were not applied to it, (chunks,)."""


def chunk_table(memory: mmap.mmap, dataset: h5py.Dataset, num_bytes: int) -> np.ndarray | None:
    """Byte offset of every chunk, by its place in the grid of chunks.

    None if some were never written, or have another size in the file than expected.

    Args:
        memory: the file's bytes.
        num_bytes: what every chunk takes in the file.
    """
    try:
        known = _in_grid(dataset, _from_tree(memory, dataset), num_bytes)
        if _agrees(dataset, known):
            return known
    except (ValueError, IndexError, OverflowError, struct.error):  # another version of the format, or no chunk at all
        pass
    offsets = _in_grid(dataset, _from_library(dataset), num_bytes)
    return None if (offsets < 0).any() else offsets


def _grid(dataset: h5py.Dataset) -> tuple[int, ...]:
    """Number of chunks along every axis."""
    return tuple(-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True))


def _in_grid(dataset: h5py.Dataset, chunks: Chunks, num_bytes: int) -> np.ndarray:
    """Byte offsets; -1 for a chunk that is not there, or not as expected."""
    offsets = np.full(_grid(dataset), -1, np.int64)
    expected = (chunks.sizes == num_bytes) & (chunks.skipped == 0)
    offsets[tuple((chunks.corners // dataset.chunks).T)] = np.where(expected, chunks.places, -1)
    return offsets


def _agrees(dataset: h5py.Dataset, offsets: np.ndarray) -> bool:
    """Whether nothing is missing, and HDF5 says the same of some chunks."""
    if (offsets < 0).any():
        return False
    for number in {0, offsets.size // 3, offsets.size // 2, offsets.size - 1}:
        place = np.unravel_index(number, offsets.shape)
        corner = tuple(int(i) * size for i, size in zip(place, dataset.chunks, strict=True))
        if dataset.id.get_chunk_info_by_coord(corner).byte_offset != offsets[place]:
            return False
    return True


def _from_library(dataset: h5py.Dataset) -> Chunks:
    """As HDF5 tells them."""
    numbers = array("q")  # not a list of objects: many would set off the garbage collector

    def note(info: h5py.h5d.StoreInfo) -> None:
        numbers.extend((*info.chunk_offset, info.byte_offset, info.size, info.filter_mask))

    dataset.id.chunk_iter(note)
    table = np.array(numbers, np.int64).reshape(-1, dataset.ndim + 3)
    return Chunks(table[:, : dataset.ndim], *table[:, dataset.ndim :].T)


def _from_tree(memory: mmap.mmap, dataset: h5py.Dataset) -> Chunks:
    """The same as `_from_library`.

    Raises:
        ValueError, OverflowError, struct.error: the format is another one.
    """
    entry = np.dtype([("size", "<u4"), ("filters", "<u4"), ("corner", "<i8", dataset.ndim + 1), ("child", "<i8")])
    nodes = [_tree_address(memory, dataset)]
    most = math.prod(_grid(dataset))
    level: int | None = None
    while True:
        tables = []
        for address in nodes:
            signature, kind, own_level, entries = struct.unpack_from("<4sBBH", memory, address)
            if signature != b"TREE" or kind != 1 or level not in (None, own_level):
                raise ValueError(f"no node of a chunk tree at {address}")
            level = own_level
            tables.append(np.frombuffer(memory, entry, entries, address + 24))
        table = np.concatenate(tables)
        if len(table) > most:
            raise ValueError("more entries than chunks")
        if level == 0:
            return Chunks(table["corner"][:, :-1], table["child"], table["size"], table["filters"])
        assert level is not None
        level -= 1
        nodes = table["child"].tolist()


def _tree_address(memory: mmap.mmap, dataset: h5py.Dataset) -> int:
    """Out of the data layout message (version 3) of the data set's object header (version 1)."""
    header = h5py.h5o.get_info(dataset.id).addr
    version, num_messages, size = struct.unpack_from("<BxHxxxxI", memory, header)
    if version != 1:
        raise ValueError(f"object header of version {version}")
    blocks = [(header + 16, size)]
    for start, length in blocks:
        at = start
        while at + 8 <= start + length and num_messages:
            kind, size = struct.unpack_from("<HH", memory, at)
            num_messages -= 1
            if kind == CONTINUATION:
                blocks.append(struct.unpack_from("<QQ", memory, at + 8))
            elif kind == LAYOUT:
                version, layout, rank, address = struct.unpack_from("<BBBQ", memory, at + 8)
                if (version, layout, rank) != (3, 2, dataset.ndim + 1):
                    raise ValueError(f"layout {layout} of version {version}")
                return address
            at += 8 + size
    raise ValueError("no layout message")
