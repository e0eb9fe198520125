"""What a zygote's child can run."""

from __future__ import annotations

import logging
import os
import resource
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faulttools.small_trainer import train
from returnn_hydra.engine.files import FileSystem
from returnn_hydra.engine.lock import RunLock
from returnn_hydra.engine.status import write_result


def small_training(folder: str, num_epochs: int = 4) -> None:
    """The small trainer on the real disk, with the lock and the result file as a task has them."""
    logging.basicConfig(level=logging.INFO)
    path, disk = Path(folder), FileSystem()
    uuid.uuid4 = lambda: uuid.UUID(int=7)
    with RunLock(path):
        trained = train(disk, num_epochs, path)
        write_result(disk, path, None, {"weight": trained.weight, "scores": trained.scores})


def command_line(words: list[str]) -> None:
    """The product's own command line; every run has the same identity, so that files can be compared byte for byte.

    Prints whether worker processes took part.
    """
    from returnn_hydra.cli import main

    uuid.uuid4 = lambda: uuid.UUID(int=7)
    sys.argv = ["run.py", *words]
    main()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    print("worker processes: " + ("yes" if children.ru_utime > 0 else "no"))


def composed(words: list[str], pause: Callable[[], None]) -> None:
    """The command line, with a pause when it is composed; until then it has touched no run folder."""
    from returnn_hydra.tasks import job

    go_on = job.run

    def run(config: Any) -> Any:
        job.run = go_on  # a sweep has several
        pause()
        return go_on(config)

    job.run = run
    command_line(words)


def limit_memory(extra_bytes: int) -> None:
    """From here on the process may take only so much more memory than it has."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + extra_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def sleep_with_child(seconds: float) -> None:
    """Leaves an orphan when it is killed: for the tests of the zygote itself."""
    if os.fork() == 0:
        time.sleep(seconds)
        os._exit(0)
    time.sleep(seconds)
