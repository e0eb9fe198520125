"""The file that an HDF writer writes into: no error is lost, and no two writers meet."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from returnn_hydra.data.dataset import DataError


class HDFTarget(io.RawIOBase):
    """A temporary file beside `path`, for `h5py.File`; `commit` gives it its name.

    libhdf5 writes a chunk when it needs the space, often while an object is destroyed, where an exception can only be
    ignored: a file with a hole would look complete. So the first error is remembered here, `checked` raises it, and
    nothing is committed after it.

    A lock (flock) keeps other writers away; what a killed one has left is written over.

    Raises:
        DataError: another process writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: OSError | None = None
        self._position = 0
        self._temporary = path.with_name(path.name + ".tmp")
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._handle: int | None = os.open(self._temporary, flags, 0o666)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._release()
            raise DataError(f"{self._temporary}: another process is writing this file") from error
        os.ftruncate(self._handle, 0)

    @contextlib.contextmanager
    def checked(self) -> Iterator[None]:
        """What is done inside has reached the file, as far as it was written.

        Raises:
            OSError: the first failure, with the path, whatever the library made of it.
        """
        try:
            yield
        finally:
            if self.error is not None:
                raise self.error

    def commit(self) -> None:
        """Sync the file, and give it its name."""
        self._attempt(self._commit)
        with self.checked():
            self._release()

    def _commit(self) -> None:
        os.fsync(self._open)
        os.replace(self._temporary, self.path)
        _sync_folder(self.path.parent)

    def discard(self) -> None:
        """Leave no file; nothing when it has its name."""
        if self._handle is not None:
            with contextlib.suppress(OSError):
                self._temporary.unlink()
            self._release()

    def _release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    @property
    def _open(self) -> int:
        """The handle; libhdf5 may come once more, long after an error."""
        if self._handle is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._handle

    def _attempt(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """Nothing after an error; no error is raised here, where h5py's driver could not stand it."""
        if self.error is None:
            try:
                return action(*arguments)
            except OSError as error:
                self.error = OSError(error.errno, error.strerror, str(self.path))
        return None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._attempt(self._write, view)
        self._position += len(view)
        return len(view)

    def _write(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            done += os.pwrite(self._open, view[done:], self._position + done)

    def readinto(self, buffer: Any) -> int:
        data = self._attempt(lambda: os.pread(self._open, len(buffer), self._position))
        if data is None:
            data = bytes(len(buffer))
        memoryview(buffer).cast("B")[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = 0
        if whence == os.SEEK_CUR:
            start = self._position
        elif whence == os.SEEK_END and self._handle is not None:
            start = os.fstat(self._handle).st_size
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        size = self._position if size is None else size
        self._attempt(lambda: os.ftruncate(self._open, size))
        return size

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _sync_folder(path: Path) -> None:
    """Wait until its names are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
