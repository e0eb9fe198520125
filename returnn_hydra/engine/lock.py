"""One live run per folder."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from returnn_hydra.engine.errors import LockedError, StateWriteError
from returnn_hydra.engine.files import cause

LOCK_FILE = "run.lock"
NAMING_SECONDS = 2.0
"""How long to wait for a live owner's name, which it writes just after it got the lock."""


class RunLock:
    """Holds the folder until `release`, the end of the `with` block, or the death of the process.

    The operating system's lock (flock) decides; the file's text names the owner. Children of a fork let go of it.
    A text left by another host may be of a live run that this system's flock can't see: that needs `steal`.
    """

    def __init__(self, folder: Path, steal: bool = False) -> None:
        self.path = folder / LOCK_FILE
        self.steal = steal
        self._handle: int | None = None
        self._pid = 0

    def acquire(self) -> RunLock:
        """
        Raises:
            LockedError: names the host, process and start of the live run.
            StateWriteError: the lock file can't be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                self._take(handle)
            except BaseException:
                os.close(handle)
                raise
        except OSError as error:
            raise StateWriteError(f"can't lock {self.path}: {cause(error)}") from error
        self._handle, self._pid = handle, os.getpid()
        os.register_at_fork(after_in_child=self._forget)
        return self

    def _take(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise LockedError(
                f"{self.path.parent}: another run is live there: {describe(self._name_of_owner(handle))}. "
                "Wait for it, stop it, or use another folder"
            ) from None
        owner = read_owner(handle)
        if owner and owner.get("host") != socket.gethostname() and not self.steal:
            raise LockedError(
                f"{self.path.parent}: locked from another host: {describe(owner)}. "
                "If that run is dead, start again with steal_lock=true"
            )
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(owner).encode(), 0)
        os.fsync(handle)

    def _name_of_owner(self, handle: int) -> dict[str, Any]:
        until = time.monotonic() + NAMING_SECONDS
        while not (owner := read_owner(handle)) and time.monotonic() < until:
            time.sleep(0.01)
        return owner

    def release(self) -> None:
        """Let go; the file stays, empty."""
        if self._handle is not None and self._pid == os.getpid():
            with contextlib.suppress(OSError):  # a name that stays there does not lock anything on this host
                os.ftruncate(self._handle, 0)
            os.close(self._handle)
        self._handle = None

    def _forget(self) -> None:
        """In a forked child: close the handle, which leaves the parent's lock alone."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> RunLock:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def read_owner(handle: int) -> dict[str, Any]:
    """What the lock file says; empty when it names nobody."""
    try:
        owner = json.loads(os.pread(handle, 4096, 0).decode() or "{}")
    except (ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def describe(owner: dict[str, Any]) -> str:
    if not owner:
        return "it has not written its name yet"
    return f"process {owner.get('pid')} on {owner.get('host')}, since {owner.get('started')}"
