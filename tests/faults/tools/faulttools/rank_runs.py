"""Runs of several ranks: started as torchrun starts them, but forked from a warm process; and what goes wrong in them.

A fault is {"kind": kill | raise | stop, "place": start | step | save | dev, "rank": which}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARK = "fault.json"
"""In the working folder: when the fault happened."""


def ranks(
    folder: str, words: list[str], num_ranks: int = 2, fault: dict[str, Any] | None = None, patience: float = 30.0
) -> int:
    """The command line in so many processes.

    Does what torchrun's agent does: it serves the store; when a rank fails, the others get SIGTERM, and SIGKILL after
    `patience` seconds (torchrun: 30).

    Returns:
        0, or 1 when a rank failed.
    """
    import torch.distributed as dist

    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ |= {"WORLD_SIZE": str(num_ranks), "TORCHELASTIC_RESTART_COUNT": "0"}
    running = {}
    for rank in range(num_ranks):
        pid = os.fork()
        if pid == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            one_rank(words, fault)
        running[pid] = rank
    failed, until = False, 0.0
    while running:
        for pid in list(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                rank = running.pop(pid)
                code = os.waitstatus_to_exitcode(status)
                if code != 0 and not failed:
                    print(f"launcher: rank {rank} failed first, exit code {code}", flush=True)
                    failed, until = True, time.monotonic() + patience
                    for other in running:
                        os.kill(other, signal.SIGTERM)
        if failed and time.monotonic() > until:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    if os.path.exists(MARK):
        print(f"launcher: ended {time.time() - json.loads(Path(MARK).read_text())['time']:.1f} s after the fault")
    return int(failed)


def one_rank(words: list[str], fault: dict[str, Any] | None) -> None:
    """The command line in this process, which then ends."""
    from returnn_hydra.cli import main

    uuid.uuid4 = lambda: uuid.UUID(int=7)
    sys.argv = ["run.py", *words]
    if fault is not None and fault["rank"] == int(os.environ["RANK"]):
        arm(fault["kind"], fault["place"])
    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        print(f"not caught: {error!r}", flush=True)
        code = 1
    sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 1)


def arm(kind: str, place: str) -> None:
    """Let it happen at this place, once it has been there a few times."""
    import returnn_hydra.engine.trainer as trainer
    from returnn_hydra.engine.checkpoint import CheckpointStore
    from returnn_hydra.engine.run_store import RunStore

    if place == "start":
        happen(kind)
    elif place == "step":
        trainer.Trainer.train_batch = before(trainer.Trainer.train_batch, kind, 6)
    elif place == "dev":
        trainer.evaluate = before(trainer.evaluate, kind, 2)
    elif os.environ["RANK"] == "0":  # in the thread that writes
        CheckpointStore._save = before(CheckpointStore._save, kind, 3)
    else:
        RunStore._save = before(RunStore._save, kind, 3)


def before(function: Callable[..., Any], kind: str, call: int) -> Callable[..., Any]:
    """The function, with the fault before its `call`th call."""
    calls = 0

    def faulty(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            happen(kind)
        return function(*arguments, **options)

    return faulty


def happen(kind: str) -> None:
    """The fault, to this process."""
    Path(MARK).write_text(json.dumps({"time": time.time()}))
    if kind == "raise":
        raise ValueError("made to fail")
    os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)


if __name__ == "__main__":  # by torchrun: FAULT as JSON, and the words
    given = os.environ.get("FAULT")
    one_rank(sys.argv[1:], json.loads(given) if given else None)
