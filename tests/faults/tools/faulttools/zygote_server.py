"""A process that has imported everything and forks a child per run: a run then costs its work, not the imports.

Started by faulttools.zygote with the fault layer preloaded; one JSON request per line on stdin, one answer on stdout.
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


def in_child(request: dict[str, Any], layer: Any) -> int:
    """Run what was asked for; returns the exit code."""
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    module, _, name = request["call"].partition(":")
    function = getattr(importlib.import_module(module), name)
    if layer is not None:
        arm = layer.faultfs_arm
        arm(request["prefix"].encode(), request["at"], kind_number(request["kind"]), int(request["sticky"]))
    try:
        return int(function(**request["arguments"]) or 0)
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


def main() -> None:
    for module in sys.argv[1:]:
        importlib.import_module(module)
    layer = fault_layer()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import or a child prints must not get between the answers
    print(json.dumps({"ready": True, "faults": layer is not None}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            os._exit(in_child(request, layer))
        code, sent = wait(pid, request)
        seconds = time.monotonic() - started
        orphans = clear_orphans(pid, request["patience"])
        count = layer.faultfs_count() if layer is not None else 0
        answer = {"exit": code, "seconds": seconds, "operations": count, "orphans": len(orphans), "sent": sent}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
