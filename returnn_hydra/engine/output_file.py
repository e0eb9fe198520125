"""A text file that gets its name only when it is complete: for outputs that are written piece by piece."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TextIO

from returnn_hydra.engine.files import TEMPORARY, FileSystem, explain_write, sync_folder


class OutputFile:
    """Written as `NAME.tmp` in the same folder; `commit` syncs and renames it, `discard` leaves nothing behind."""

    def __init__(self, path: Path, disk: FileSystem | None = None) -> None:
        self.path = path
        self._disk = disk or FileSystem()
        self._temporary = path.with_name(path.name + TEMPORARY)
        self._stream: TextIO | None = None

    def open(self) -> TextIO:
        """The stream to write to.

        Raises:
            StateWriteError: the folder or the file can't be made.
        """
        with explain_write(self._disk, self.path, 0):
            self._disk.make_folder(self.path.parent)
            if self._disk.size(self._temporary) is not None:
                self._disk.unlink(self._temporary)
            self._stream = os.fdopen(self._disk.create(self._temporary), "w", encoding="utf8")
        return self._stream

    def commit(self) -> None:
        """Give the complete file its name."""
        assert self._stream is not None
        with explain_write(self._disk, self.path, 0):
            self._stream.flush()
            self._disk.fsync(self._stream.fileno())
            self._stream.close()
            self._disk.rename(self._temporary, self.path)
        sync_folder(self._disk, self.path.parent)

    def discard(self) -> None:
        """Forget what was written."""
        if self._stream is not None:
            self._stream.close()
            with contextlib.suppress(OSError):
                self._disk.unlink(self._temporary)
