"""Which rank made a run of several processes fail: the ranks leave word for each other, in torchrun's store.

A rank that fails says why. A rank whose collective call fails looks who else failed, and who does not answer: killed
ones, stopped ones, hanging ones.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch.distributed as dist

from returnn_hydra.engine.errors import LostRankError, last_line

CONNECT_SECONDS = 300.0
GRACE = 2.0
"""Seconds that a rank has to say that it is alive, or why it ends, once another one fails."""
PAUSE = 0.02


@functools.cache
def meeting_point() -> dist.Store:
    """The store of this start of the run, which torchrun (or the first rank) serves."""
    store, _, _ = next(dist.rendezvous("env://", timeout=datetime.timedelta(seconds=CONNECT_SECONDS)))
    return store


def wait_for(keys: Iterable[str], store: dist.Store, seconds: float, enough: Callable[[], bool] | None = None) -> None:
    """Until all keys are in the store, `enough()` is true, or the time is up.

    Looks again and again instead of waiting inside the store, where no signal would be noticed.
    """
    missing, until = set(keys), time.monotonic() + seconds
    while missing and time.monotonic() < until and not (enough and enough()):
        missing = {key for key in missing if not store.check([key])}
        if missing:
            time.sleep(PAUSE)


def meet(store: dist.Store, rank: int, size: int, seconds: float) -> None:
    """Until all ranks are here.

    Raises:
        LostRankError: names those that are not.
    """
    store.set(f"present/{rank}", _name(os.getpid()))
    wait_for((f"present/{other}" for other in range(size)), store, seconds)
    if missing := [other for other in range(size) if not store.check([f"present/{other}"])]:
        names = ", ".join(map(str, missing))
        raise LostRankError(f"of {size} ranks, not here after {seconds:g} s (distributed_timeout): rank {names}")


def until_all_told() -> None:
    """Wait a little for ranks that end for the same reason: once the first is gone, torchrun ends the others."""
    if not dist.is_initialized():
        return
    with contextlib.suppress(dist.DistError):  # the store went down with the rank that served it
        store = meeting_point()
        store.set(f"told/{dist.get_rank()}", "")
        wait_for((f"told/{other}" for other in range(dist.get_world_size())), store, GRACE)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Errors inside are told to the other ranks; one that only says that a collective call failed is replaced.

    Raises:
        LostRankError: in place of that, with the ranks that failed or don't answer.
    """
    try:
        yield
    except BaseException as error:
        better = _explain(error)
        if better is error:
            raise
        raise better from error


def _explain(error: BaseException) -> BaseException:
    if not dist.is_initialized() or isinstance(error, LostRankError):
        return error
    rank, size = dist.get_rank(), dist.get_world_size()
    with contextlib.suppress(dist.DistError):  # the store went down with the rank that served it
        store = meeting_point()
        if not _is_of_collective(error):
            store.set(f"failed/{rank}", last_line(error))
            return error
        store.set(f"waiting/{rank}", "")
        return LostRankError(f"{_who_is_lost(store, rank, size)} ({_short(error)})")
    return LostRankError(f"the rank that serves the ranks' store is gone: rank 0 or torchrun ({_short(error)})")


def _is_of_collective(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "NCCL", "Connection closed by peer"))
    )


def _who_is_lost(store: dist.Store, rank: int, size: int) -> str:
    others = [other for other in range(size) if other != rank]

    def failed() -> list[int]:
        return [other for other in others if store.check([f"failed/{other}"])]

    wait_for((f"waiting/{other}" for other in others), store, GRACE, lambda: bool(failed()))
    if found := failed():
        return "; ".join(f"rank {other} failed: {store.get(f'failed/{other}').decode()}" for other in found)
    silent = [other for other in others if not store.check([f"waiting/{other}"])]
    if not silent:
        return "the connection between the ranks broke"
    lost = []
    for other in silent:
        where = store.get(f"present/{other}").decode()
        how = "it was stopped" if _continue_stopped(where) else "killed or hanging"
        lost.append(f"rank {other} of {size} ({where}) does not answer: {how}")
    return "; ".join(lost)


def _continue_stopped(where: str) -> bool:
    """Whether this is a stopped process (SIGSTOP) of this machine.

    If so, it is let go on, to find the others gone, and end: torchrun would wait 30 s for it.
    """
    process = int(where.rpartition(" ")[2])
    if where != _name(process) or not sys.platform.startswith("linux"):
        return False
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "T":
            os.kill(process, signal.SIGCONT)
            return True
    return False


def _name(process: int) -> str:
    return f"host {socket.gethostname()}, process {process}"


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
