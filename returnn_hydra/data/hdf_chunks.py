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

import h5py
import numpy as np

LAYOUT, CONTINUATION = 8, 16
"""Kinds of messages in an object header."""


def chunk_table(memory: mmap.mmap, dataset: h5py.Dataset) -> np.ndarray | None:
    """Byte offset of every chunk, by its place in the grid of chunks; None if some were never written.

    Args:
        memory: the file's bytes.
    """
    try:
        known = _in_grid(dataset, *_from_tree(memory, dataset))
        if _agrees(dataset, known):
            return known
    except (ValueError, IndexError, OverflowError, struct.error):  # another version of the format, or no chunk at all
        pass
    offsets = _in_grid(dataset, *_from_library(dataset))
    return None if (offsets < 0).any() else offsets


def _grid(dataset: h5py.Dataset) -> tuple[int, ...]:
    """Number of chunks along every axis."""
    return tuple(-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True))


def _in_grid(dataset: h5py.Dataset, corners: np.ndarray, places: np.ndarray) -> np.ndarray:
    offsets = np.full(_grid(dataset), -1, np.int64)
    offsets[tuple((corners // dataset.chunks).T)] = places
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


def _from_library(dataset: h5py.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """First row and column of every chunk, (chunks, axes), and its byte offset, (chunks,)."""
    corners, places = array("q"), array("q")  # not lists of objects: many would set off the garbage collector

    def note(info: h5py.h5d.StoreInfo) -> None:
        corners.extend(info.chunk_offset)
        places.append(info.byte_offset)

    dataset.id.chunk_iter(note)
    return np.array(corners, np.int64).reshape(-1, dataset.ndim), np.array(places, np.int64)


def _from_tree(memory: mmap.mmap, dataset: h5py.Dataset) -> tuple[np.ndarray, np.ndarray]:
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
            return table["corner"][:, :-1], table["child"]
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
