"""How much memory a process may take, and keeps."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's names of mallopt's parameters."""


def keep_freed_memory(num_bytes: int = 512 << 20, largest: int = 32 << 20) -> None:
    """Let the process keep up to so many freed bytes for its next batches, where the C library is glibc.

    By default glibc gives the memory of every batch back to the system, and takes it again page by page for the next,
    which costs as much as filling it.

    Args:
        largest: arrays up to this size are kept (32 MiB is the most that glibc allows).
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(M_TRIM_THRESHOLD, num_bytes)
    mallopt(M_MMAP_THRESHOLD, largest)


def available_memory() -> int:
    """Bytes that can be taken without swapping: of the machine, and of the container if it has a limit."""
    available = _of_machine()
    for limit_file, usage_file in CGROUP_FILES:
        try:
            limit, usage = Path(limit_file).read_text().strip(), Path(usage_file).read_text().strip()
        except OSError:
            continue
        if limit != "max":
            available = min(available, max(int(limit) - int(usage), 0))
    return available


def _of_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux: half of what is built in
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024
