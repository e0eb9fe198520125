"""A disk in memory that can fail at any operation, and that can list what a crash would leave behind.

A file's bytes are safe after fsync, a folder's names after fsync of the folder. A power cut may keep any part of what
is not safe: names in their order up to some point (or, on weak file systems, any of them), contents old, whole, cut, or
followed by zeros or garbage.
"""

from __future__ import annotations

import errno
import io
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from returnn_hydra.engine.files import FileSystem

Image = dict[str, bytes]
"""Path to content: all that is left after a crash."""


class Crash(BaseException):
    """The process is dead: whatever it does from here on has no effect."""


@dataclass
class File:
    """An inode."""

    data: bytes = b""
    safe: bytes = b""


@dataclass
class Operation:
    """One operation as it was carried out, to be done again on another disk."""

    kind: str
    path: str
    target: str = ""
    data: bytes = b""


@dataclass
class SimulatedDisk(FileSystem):
    names_now: dict[str, File] = field(default_factory=dict)
    names_safe: dict[str, File] = field(default_factory=dict)
    journal: list[Operation] = field(default_factory=list)
    """Changes of names that no fsync of the folder has made safe."""
    trace: list[Operation] = field(default_factory=list)
    fault: Callable[[int, str, str], OSError | None] | None = None
    """(number, kind, path) of an operation -> the error that it ends with."""
    torn_fault: bool = False
    """A failing write first takes half of its bytes."""
    short_writes: bool = False
    crash_before: int | None = None
    """The number of the operation before which the process dies."""
    free: int = 1 << 40

    def __post_init__(self) -> None:
        self._handles: dict[int, tuple[str, File]] = {}
        self._moved: dict[tuple[int, str], File] = {}
        self._next_handle = 3
        self.count = 0

    @classmethod
    def from_image(cls, image: Image) -> SimulatedDisk:
        """The disk when the machine is up again: everything on it is safe."""
        files = {path: File(data, data) for path, data in image.items()}
        return cls(names_now=dict(files), names_safe=dict(files))

    def image(self) -> Image:
        """What a process that starts now finds."""
        return {path: file.data for path, file in self.names_now.items()}

    # --- the operations

    def _begin(self, kind: str, path: Path | str) -> None:
        if self.crash_before is not None and self.count >= self.crash_before:
            raise Crash
        number, self.count = self.count, self.count + 1
        error = self.fault(number, kind, str(path)) if self.fault else None
        if error is not None:
            raise error

    def _did(self, operation: Operation) -> None:
        self.trace.append(operation)

    def create(self, path: Path) -> int:
        self._begin("create", path)
        if str(path) in self.names_now:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        self.redo(Operation("create", str(path)))
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._handles[handle] = (str(path), self.names_now[str(path)])
        return handle

    def write(self, handle: int, data: memoryview) -> int:
        path, _ = self._handles[handle]
        try:
            self._begin("write", path)
        except OSError:
            if self.torn_fault:
                self.redo(Operation("write", path, data=bytes(data[: len(data) // 2])))
            raise
        taken = max(1, len(data) // 2) if self.short_writes else len(data)
        self.redo(Operation("write", path, data=bytes(data[:taken])))
        return taken

    def fsync(self, handle: int) -> None:
        path, _ = self._handles[handle]
        self._begin("fsync", path)
        self.redo(Operation("fsync", path))

    def close(self, handle: int) -> None:
        path, _ = self._handles.pop(handle)
        self._begin("close", path)

    def rename(self, source: Path, target: Path) -> None:
        self._begin("rename", source)
        if str(source) not in self.names_now:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self.redo(Operation("rename", str(source), str(target)))

    def unlink(self, path: Path) -> None:
        self._begin("unlink", path)
        if str(path) not in self.names_now:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self.redo(Operation("unlink", str(path)))

    def fsync_folder(self, folder: Path) -> None:
        self._begin("fsync_folder", folder)
        self.redo(Operation("fsync_folder", str(folder)))

    def make_folder(self, folder: Path) -> None:
        self._begin("make_folder", folder)

    def names(self, folder: Path) -> list[str]:
        self._begin("names", folder)
        return sorted(Path(path).name for path in self.names_now if Path(path).parent == folder)

    def size(self, path: Path) -> int | None:
        self._begin("size", path)
        file = self.names_now.get(str(path))
        return None if file is None else len(file.data)

    def open_read(self, path: Path) -> IO[bytes]:
        self._begin("open_read", path)
        if str(path) not in self.names_now:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return io.BytesIO(self.names_now[str(path)].data)

    def free_bytes(self, folder: Path) -> int:
        return self.free

    def redo(self, operation: Operation) -> None:
        """Carry out an operation that changes the disk, and note it."""
        path, kind = operation.path, operation.kind
        if kind == "create":
            file = self.names_now[path] = File()
            self._moved[(len(self.journal), path)] = file
            self.journal.append(operation)
        elif kind == "write":
            self.names_now[path].data += operation.data
        elif kind == "fsync":
            self.names_now[path].safe = self.names_now[path].data
        elif kind == "rename":
            file = self.names_now.pop(path)
            self.names_now[operation.target] = file
            self._moved[(len(self.journal), path)] = file
            self.journal.append(operation)
        elif kind == "unlink":
            del self.names_now[path]
            self.journal.append(operation)
        else:
            self.names_safe = dict(self.names_now)
            self.journal.clear()
            self._moved.clear()
        self._did(operation)

    # --- what a crash leaves

    def crash_images(self, rng: random.Random, count: int) -> Iterator[Image]:
        """`count` possible disks after a crash; the first two: only the process died, and all unsafe data is lost."""
        yield self.image()
        yield {path: file.safe for path, file in self.names_safe.items()}
        for number in range(count - 2):
            weak = number % 3 == 0
            if weak:
                kept = [index for index in range(len(self.journal)) if rng.random() < 0.6]
            else:
                kept = list(range(rng.randint(0, len(self.journal))))
            yield {path: left_of(file, rng) for path, file in self._names_after(kept).items()}

    def _names_after(self, kept: list[int]) -> dict[str, File]:
        names = dict(self.names_safe)
        for index in kept:
            operation = self.journal[index]
            if operation.kind == "unlink":
                names.pop(operation.path, None)
            elif operation.kind == "create":
                names[operation.path] = self._moved[(index, operation.path)]
            else:
                names.pop(operation.path, None)
                names[operation.target] = self._moved[(index, operation.path)]
        return names


def left_of(file: File, rng: random.Random) -> bytes:
    """The content of a file after a power cut."""
    if file.data == file.safe:
        return file.data
    kind = rng.randrange(5)
    cut = rng.randint(len(file.safe), len(file.data))
    if kind == 0:
        return file.safe
    if kind == 1:
        return file.data
    if kind == 2:
        return file.data[:cut]
    if kind == 3:
        return file.data[:cut] + bytes(len(file.data) - cut)
    return file.data[:cut] + rng.randbytes(len(file.data) - cut)
