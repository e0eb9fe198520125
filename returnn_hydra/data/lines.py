"""The lines of text files, any of them at once, without holding the text in memory.

Legend: N lines.
"""

from __future__ import annotations

import mmap
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.files import decode_utf8, open_binary

BLOCK = 1 << 24
"""Bytes that are looked at together."""
_SPACES = np.zeros(256, dtype=bool)
_SPACES[[9, 10, 11, 12, 13, 32]] = True


class LineCorpus:
    """Lines of plain or packed (.gz) text files and of Bliss XML corpora (one line per segment), one file after the
    other.

    A last line without an end counts. White space around a line is not part of it.

    Args:
        files: the files.
        skip_empty_lines: lines with nothing but white space don't count.
    """

    def __init__(self, files: Sequence[Path], skip_empty_lines: bool) -> None:
        self.files = list(files)
        self.skip_empty_lines = skip_empty_lines
        self._maps: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the lines begin in their file, their bytes, (N,) each; and the first line of every file."""
        starts, lengths = [], []
        for number in range(len(self.files)):
            start, length = self._scan(self._bytes(number))
            starts.append(start)
            lengths.append(length)
        firsts = np.cumsum([0, *map(len, starts)])
        return np.concatenate(starts), np.concatenate(lengths), firsts

    def _scan(self, data: Any) -> tuple[np.ndarray, np.ndarray]:
        """Begin and length of the lines of one file."""
        starts, lengths = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int32)]
        position = 0
        while position < len(data):
            end = position + BLOCK
            end = len(data) if end >= len(data) else data.rfind(b"\n", position, end) + 1
            if end <= position:  # a line longer than a block
                end = data.find(b"\n", position) + 1 or len(data)
            block = np.frombuffer(data[position:end], dtype=np.uint8)
            ends = np.flatnonzero(block == 10)
            if not len(ends) or ends[-1] != len(block) - 1:
                ends = np.append(ends, len(block))
            begins = np.concatenate([[0], ends[:-1] + 1])
            keep = (
                np.logical_or.reduceat(~_SPACES[block], begins) if self.skip_empty_lines else np.ones(len(ends), bool)
            )
            starts.append(begins[keep] + position)
            lengths.append((ends - begins)[keep].astype(np.int32))
            position = end
        return np.concatenate(starts), np.concatenate(lengths)

    def _bytes(self, number: int) -> Any:
        """The content of a file, mapped into memory; of a packed file or an XML file, its lines."""
        if number not in self._maps:
            self._maps[number] = _map(self.files[number])
        return self._maps[number]

    def __len__(self) -> int:
        return len(self._index[0])

    @property
    def num_bytes(self) -> np.ndarray:
        """Bytes of every line, (N,)."""
        return self._index[1].astype(np.int64)

    def __getitem__(self, index: int) -> str:
        """A line, without the white space around it.

        Raises:
            DataError: it is not UTF-8.
        """
        starts, lengths, firsts = self._index
        number = int(np.searchsorted(firsts, index, side="right")) - 1
        start = int(starts[index])
        line = self._bytes(number)[start : start + int(lengths[index])]
        return decode_utf8(line, f"{self.files[number]}, line {index - int(firsts[number])}").strip()

    def where(self, index: int) -> str:
        """The file of a line, and its number there (counted from 0), for error messages."""
        firsts = self._index[2]
        number = int(np.searchsorted(firsts, index, side="right")) - 1
        return f"{self.files[number]}, line {index - int(firsts[number])}"


def _map(path: Path) -> Any:
    with open_binary(path) as file:
        begin = file.read(200).lstrip()
        file.seek(0)
        if begin.startswith((b"<?xml", b"<corpus")):
            return _map_file(_spooled(_segments(file, path), path))
        if path.name.endswith(".gz"):
            return _map_file(_spooled(iter(lambda: file.read(BLOCK), b""), path))
        return _map_file(file)


def _map_file(file: IO[bytes]) -> Any:
    file.seek(0, 2)
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.tell() else b""


def _spooled(parts: Iterator[bytes], path: Path) -> IO[bytes]:
    """A nameless temporary file that holds the parts."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the map of it)
    try:
        for part in parts:
            file.write(part)
    except (OSError, EOFError, ElementTree.ParseError) as error:
        file.close()
        raise DataError(f"{path}: can't be read: {error}") from error
    file.flush()
    return file


def _segments(file: IO[bytes], path: Path) -> Iterator[bytes]:
    """One line for the orthography of every segment of a Bliss corpus."""
    root = None
    for event, element in ElementTree.iterparse(file, events=("start", "end")):
        root = element if root is None else root
        if event == "end" and element.tag == "segment":
            orth = element.find("orth")
            if orth is None:
                raise DataError(f"{path}: segment {element.get('name')!r} has no <orth>")
            yield " ".join((orth.text or "").split()).encode("utf-8") + b"\n"
            root.clear()
