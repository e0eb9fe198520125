"""The only place that writes the state of a run: atomic, synced to the disk, and with errors that say what to do.

A file gets its final name only when its whole content is on the disk (written to `NAME.tmp` in the same folder, fsync,
rename, fsync of the folder). Everything goes through a `FileSystem` object: tests put a simulated disk there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from returnn_hydra.engine.errors import StateReadError, StateWriteError, UnsafeNameError

TEMPORARY = ".tmp"
SMALL_PIECES = 1 << 20
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]{0,199}")


class FileSystem:
    """The operations of the real disk that state files need; they raise OSError."""

    def create(self, path: Path) -> int:
        """A new file, open for writing; never an existing one, never through a symlink."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)

    def write(self, handle: int, data: memoryview) -> int:
        """Returns how many bytes were taken, possibly not all."""
        return os.write(handle, data)

    def fsync(self, handle: int) -> None:
        os.fsync(handle)

    def close(self, handle: int) -> None:
        os.close(handle)

    def rename(self, source: Path, target: Path) -> None:
        """Replaces the target; a symlink there is replaced, not followed."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def fsync_folder(self, folder: Path) -> None:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some network file systems can't sync folders
                raise
        finally:
            os.close(handle)

    def make_folder(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)

    def names(self, folder: Path) -> list[str]:
        """The names in a folder, sorted; none when it does not exist."""
        try:
            return sorted(os.listdir(folder))
        except FileNotFoundError:
            return []

    def size(self, path: Path) -> int | None:
        """In bytes; None when there is no such file."""
        try:
            return os.stat(path).st_size
        except FileNotFoundError:
            return None

    def open_read(self, path: Path) -> IO[bytes]:
        return path.open("rb")

    def free_bytes(self, folder: Path) -> int:
        return shutil.disk_usage(folder).free


@dataclass(frozen=True)
class FileFacts:
    """What a manifest says about a file."""

    bytes: int
    sha256: str


class Writer:
    """What `torch.save` writes into: counts and hashes the bytes on their way to an open file."""

    def __init__(self, disk: FileSystem, handle: int) -> None:
        self._disk = disk
        self._handle = handle
        self._hash = hashlib.sha256()
        self._small = bytearray()
        self.bytes = 0
        self.error: OSError | None = None
        """The first failure: `torch.save` may hide it behind an error of its own."""

    def write(self, data: Any) -> int:
        """Takes everything; small pieces are collected, since `torch.save` writes many."""
        view = memoryview(data).cast("B")
        if len(self._small) + len(view) > SMALL_PIECES:
            self.flush()
        if len(view) > SMALL_PIECES:
            self._write(view)
        else:
            self._small += view
        return len(view)

    def flush(self) -> None:
        if self._small:
            self._write(memoryview(self._small))
            self._small = bytearray()

    def _write(self, view: memoryview) -> None:
        try:
            done = 0
            while done < len(view):
                done += self._disk.write(self._handle, view[done:])
        except OSError as error:
            self.error = self.error or error
            raise
        self._hash.update(view)
        self.bytes += len(view)

    def facts(self) -> FileFacts:
        """Of what has been flushed."""
        return FileFacts(self.bytes, self._hash.hexdigest())


def write_atomic(
    disk: FileSystem, path: Path, fill: Callable[[Writer], Any], needed: int, synced: bool = True
) -> FileFacts:
    """Create or replace a file; under its name there is always the old or the whole new content.

    The new *name* survives a power cut only after `sync_folder`.

    Args:
        fill: writes the content into the object that it gets.
        needed: about how many bytes that will be, for the error message.
        synced: False: whole for readers, but a power cut may leave an empty file.

    Raises:
        StateWriteError: the disk refused; what was there before is intact.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    with explain_write(disk, path, needed):
        if disk.size(temporary) is not None:
            disk.unlink(temporary)
        handle = disk.create(temporary)
        try:
            facts = _fill(disk, handle, fill, synced)
            _expect_size(disk, temporary, facts.bytes)
            disk.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                disk.unlink(temporary)
            raise
    return facts


def _fill(disk: FileSystem, handle: int, fill: Callable[[Writer], Any], synced: bool) -> FileFacts:
    """Write and sync the content, and close the file whatever happens."""
    writer = Writer(disk, handle)
    try:
        try:
            fill(writer)
            writer.flush()
        finally:
            if writer.error is not None:
                raise writer.error
        if synced:
            disk.fsync(handle)
    except BaseException:
        with contextlib.suppress(OSError):
            disk.close(handle)
        raise
    disk.close(handle)
    return writer.facts()


def _expect_size(disk: FileSystem, path: Path, expected: int) -> None:
    found = disk.size(path)
    if found != expected:
        raise OSError(errno.EIO, f"{expected} bytes were written without an error, but the file has {found}")


def write_text(disk: FileSystem, path: Path, text: str, synced: bool = True) -> FileFacts:
    """Create or replace a small file, and have it on the disk when this returns (unless it need not be `synced`)."""
    data = text.encode()
    facts = write_atomic(disk, path, lambda writer: writer.write(data), len(data), synced)
    if synced:
        sync_folder(disk, path.parent)
    return facts


def sync_folder(disk: FileSystem, folder: Path) -> None:
    """After this, the names in the folder survive a power cut."""
    with explain_write(disk, folder, 0):
        disk.fsync_folder(folder)


def remove(disk: FileSystem, path: Path) -> None:
    """Delete a file if it is there."""
    with explain_write(disk, path, 0):
        if disk.size(path) is not None:
            disk.unlink(path)


def exists(disk: FileSystem, path: Path) -> bool:
    with explain_read(path):
        return disk.size(path) is not None


def read_bytes(disk: FileSystem, path: Path) -> bytes:
    with explain_read(path), disk.open_read(path) as file:
        return file.read()


def hash_file(file: IO[bytes]) -> FileFacts:
    """Size and sha256 of the rest of an open file."""
    digest, size = hashlib.sha256(), 0
    while block := file.read(1 << 20):
        digest.update(block)
        size += len(block)
    return FileFacts(size, digest.hexdigest())


@contextlib.contextmanager
def explain_write(disk: FileSystem, path: Path, needed: int) -> Iterator[None]:
    """OSError -> StateWriteError naming the path, the cause, and the bytes needed and free."""
    try:
        yield
    except OSError as error:
        try:
            free = f"{disk.free_bytes(path.parent):,} bytes"
        except OSError:
            free = "an unknown number of bytes"
        raise StateWriteError(
            f"can't write {path}: {cause(error)}; {needed:,} bytes needed, {free} free. "
            "What was saved before is intact: repair the disk and start the same command again"
        ) from error


@contextlib.contextmanager
def explain_read(path: Path) -> Iterator[None]:
    """OSError -> StateReadError naming the path and the cause."""
    try:
        yield
    except OSError as error:
        raise StateReadError(f"can't read {path}: {cause(error)}") from error


def cause(error: OSError) -> str:
    """`No space left on device (ENOSPC)`."""
    name = errno.errorcode.get(error.errno or 0, "")
    return f"{error.strerror or error}{f' ({name})' if name else ''}"


def check_free_space(disk: FileSystem, folder: Path, needed: int) -> None:
    """
    Raises:
        StateWriteError: fewer than `needed` bytes are free in the folder.
    """
    with explain_write(disk, folder / "checkpoint", needed):
        free = disk.free_bytes(folder)
        if free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def safe_name(name: str) -> str:
    """The name itself, if it is a plain file name.

    Raises:
        UnsafeNameError: it has other characters, could leave its folder, or is too long.
    """
    if not SAFE_NAME.fullmatch(name):
        raise UnsafeNameError(
            f"output name {name!r}: use 1 to 200 letters, digits and . _ = , + - and begin with a letter or a digit"
        )
    return name


def inside(folder: Path, name: str) -> Path:
    """The path of an output file in a run's folder; `name` may have subfolders, each part a safe name.

    Raises:
        UnsafeNameError: a part is no safe name, or a symlink leads out of the folder.
    """
    parts = name.split("/")
    for part in parts:
        safe_name(part)
    root = folder.resolve()
    path = root.joinpath(*parts)
    if not path.resolve().is_relative_to(root):
        raise UnsafeNameError(f"output name {name!r}: leads out of {root} to {path.resolve()}")
    return path
