"""A text file that gets its name only when it is complete: for outputs that are written piece by piece."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path
from typing import TextIO

from returnn_hydra.engine.files import TEMPORARY, FileSystem, explain_write, sync_folder

BUFFER_BYTES = 1 << 20
"""Written at once."""


class OutputFile:
    """Written as `NAME.tmp` in the same folder; `commit` syncs and renames it. A name that ends with `.gz` is packed.

    Raises:
        StateWriteError: of every method: the disk refused.
    """

    def __init__(self, path: Path, disk: FileSystem | None = None) -> None:
        self.path = path
        self._disk = disk or FileSystem()
        self._temporary = path.with_name(path.name + TEMPORARY)
        self._file: TextIO
        self._text: TextIO
        """The same, or what packs it."""
        self._bytes = 0

    def open(self) -> OutputFile:
        """Begin; what an earlier process left unfinished is gone."""
        with explain_write(self._disk, self.path, 0):
            self._disk.make_folder(self.path.parent)
            if self._disk.size(self._temporary) is not None:
                self._disk.unlink(self._temporary)
            handle = self._disk.create(self._temporary)
            self._file = self._text = os.fdopen(handle, "w", buffering=BUFFER_BYTES, encoding="utf8")
            if self.path.suffix == ".gz":
                packed = gzip.GzipFile(filename="", mode="wb", fileobj=self._file.buffer, mtime=0)
                self._text = io.TextIOWrapper(packed, encoding="utf8")
        self._bytes = 0
        return self

    def write(self, text: str) -> None:
        """Add it to what is there."""
        self._bytes += len(text)
        with explain_write(self._disk, self.path, self._bytes):
            self._text.write(text)

    def commit(self) -> None:
        """Give the complete file its name."""
        with explain_write(self._disk, self.path, self._bytes):
            if self._text is not self._file:
                self._text.close()
            self._file.flush()
            self._disk.fsync(self._file.fileno())
            self._file.close()
            self._disk.rename(self._temporary, self.path)
        sync_folder(self._disk, self.path.parent)
