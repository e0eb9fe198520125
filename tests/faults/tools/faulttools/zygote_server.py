"""A process that has imported everything and forks a child per run: a run then costs its work, not the imports.

Started by faulttools.zygote with the fault layer preloaded; one JSON request per line on stdin, one answer on stdout.
A command line whose runs are many is composed once: its process stops before the job, and forks the runs from there.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import os
import signal
import sys
import time
import traceback
from typing import Any

KINDS = {"none": 0, "kill": 1, "torn": 2}


def fault_layer() -> Any:
    """The functions of faultfs.c in this process, or None when it is not preloaded."""
    layer = ctypes.CDLL(None)
    if not hasattr(layer, "faultfs_arm"):
        return None
    layer.faultfs_count.restype = ctypes.c_long
    layer.faultfs_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int]
    return layer


def kind_number(kind: str) -> int:
    return KINDS[kind] if kind in KINDS else 100 + getattr(errno, kind)


def call(name: str, arguments: dict[str, Any]) -> Any:
    """`module:function` with these keyword arguments."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)(**arguments)


def begin(request: dict[str, Any], layer: Any) -> None:
    """Make this new process the run that was asked for: its session, its output, its fault."""
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if layer is not None:
        arm = layer.faultfs_arm
        arm(request["prefix"].encode(), request["at"], kind_number(request["kind"]), int(request["sticky"]))
    if request["before"] is not None:
        call(*request["before"])


def exit_code(name: str, arguments: dict[str, Any]) -> int:
    """Of the process that makes this call."""
    try:
        return int(call(name, arguments) or 0)
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException as error:
        traceback.print_exc()
        from returnn_hydra.engine.errors import exit_code_of

        return exit_code_of(error)


def wait(pid: int, request: dict[str, Any]) -> tuple[int | None, list[float]]:
    """The exit code (minus the signal's number), None after the time limit; sends the signals that were asked for."""
    started = time.monotonic()
    signals = sorted(request["signals"])
    sent = []
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), sent
        now = time.monotonic() - started
        if signals and now >= signals[0][0]:
            os.kill(pid, signals.pop(0)[1])
            sent.append(now)
        if now > request["limit"]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None, sent
        time.sleep(0.001)


def processes_of_session(session: int) -> list[int]:
    """Live processes that a child left behind."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    state, _, _, its_session = file.read().rsplit(")", 1)[1].split()[:4]
            except (OSError, ValueError):
                continue
            if int(its_session) == session and state not in "ZX":
                found.append(int(name))
    return found


def clear_orphans(session: int, patience: float) -> list[int]:
    """Those alive after `patience` seconds; they are killed."""
    until = time.monotonic() + patience
    while (orphans := processes_of_session(session)) and time.monotonic() < until:
        time.sleep(0.01)
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)
    return orphans


class Server:
    """Answers requests by processes of their own."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what an import or a child prints must not get between the answers

    def answer(self, **facts: Any) -> None:
        print(json.dumps(facts), file=self._answers, flush=True)

    def serve(self) -> dict[str, Any]:
        """Until there are no more requests; returns in the new processes, with what they are to do."""
        for line in sys.stdin:
            request = json.loads(line)
            if "leave" in request:
                break
            started = time.monotonic()
            pid = os.fork()
            if pid == 0:
                return request
            if "compose" in request:
                os.waitpid(pid, 0)
                self.answer(left=True)
                continue
            code, sent = wait(pid, request)
            seconds = time.monotonic() - started
            orphans = clear_orphans(pid, request["patience"])
            count = self._layer.faultfs_count() if self._layer is not None else 0
            self.answer(exit=code, seconds=seconds, operations=count, orphans=len(orphans), sent=sent)
        os._exit(0)

    def pause(self) -> None:
        """The command line is composed: serve from here; returns in the processes of the runs."""
        self.answer(composed=True)
        begin(self.serve(), self._layer)

    def work(self, request: dict[str, Any]) -> int:
        """What a new process was asked to do; returns its exit code."""
        if "compose" in request:
            return exit_code("faulttools.runs:composed", {"words": request["compose"], "pause": self.pause})
        begin(request, self._layer)
        return exit_code(request["call"], request["arguments"])


def main() -> None:
    for module in sys.argv[1:]:
        importlib.import_module(module)
    layer = fault_layer()
    server = Server(layer)
    server.answer(ready=True, faults=layer is not None)
    os._exit(server.work(server.serve()))


if __name__ == "__main__":
    main()
