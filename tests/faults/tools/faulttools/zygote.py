"""Whole runs with faults, each in a process of its own: kill, torn writes, refusals and signals.

with Zygote(layer, ["returnn_hydra.cli", "torch"], folder) as zygote:
    done = zygote.command(["task=train", ...], prefix=run_folder)
    for at in range(done.operations):
        zygote.command(["task=train", ...], prefix=run_folder, at=at, kind="kill")
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

TOOLS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    exit: int | None
    """Exit code, minus the number of the signal that killed it, or None: stopped at the time limit."""
    seconds: float
    operations: int
    """File operations below the prefix."""
    orphans: int
    """Processes of the run that lived on for longer than `patience`."""
    sent: list[float]
    """When the signals were sent, in seconds from the start."""
    output: str
    """What it printed."""


def build_fault_layer(folder: Path) -> Path | None:
    """Compile faultfs.c; None where there is no C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    target = folder / "faultfs.so"
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-O2",
        "-o",
        str(target),
        str(Path(__file__).with_name("faultfs.c")),
        "-ldl",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return target


class Zygote:
    """A waiting process with the modules imported."""

    def __init__(self, layer: Path | None, modules: Sequence[str], folder: Path, **environment: str) -> None:
        """
        Args:
            layer: from `build_fault_layer`; None: runs and signals only, no faults of the disk.
            folder: for the logs of the runs; also their working folder.
            environment: further variables.
        """
        self._log = folder / "zygote.log"
        self._folder = folder
        paths = os.pathsep.join([str(TOOLS), str(TOOLS.parents[2])])
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **environment}
        if layer is not None:
            self._environment["LD_PRELOAD"] = str(layer)
        self._command = [sys.executable, "-m", "faulttools.zygote_server", *modules]
        self._composed: list[str] | None = None

    def __enter__(self) -> Zygote:
        errors = self._log.open("ab")
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            self._command, stdin=pipe, stdout=pipe, stderr=errors, text=True, env=self._environment, cwd=self._folder
        )
        errors.close()
        self.has_faults = bool(self._answer()["faults"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def run(self, call: str, arguments: dict[str, Any], prefix: Path, **fault: Any) -> Outcome:
        """Run `module:function` with these keyword arguments in a new process; an int that it returns is the exit code.

        Args:
            prefix: the folder whose operations count.
            fault: see `_outcome`.
        """
        self._leave()
        return self._outcome({"call": call, "arguments": arguments}, prefix, **fault)

    def command(self, words: Sequence[str], prefix: Path, **fault: Any) -> Outcome:
        """Run the product's command line; what comes before its job is done once for all runs with the same words."""
        if self._composed != list(words):
            self._leave()
            if "composed" not in self._ask({"compose": list(words)}):
                raise RuntimeError(f"{words}: {self._log.read_text(errors='replace')[-2000:]}")
            self._composed = list(words)
        return self._outcome({}, prefix, **fault)

    def _leave(self) -> None:
        if self._composed is not None:
            self._ask({"leave": True})
            self._composed = None

    def _outcome(
        self,
        request: dict[str, Any],
        prefix: Path,
        at: int = -1,
        kind: str = "none",
        sticky: bool = False,
        limit: float = 120.0,
        signals: Sequence[tuple[float, int]] = (),
        patience: float = 10.0,
        before: tuple[str, dict[str, Any]] | None = None,
    ) -> Outcome:
        """
        Args:
            at: the number of the operation that goes wrong; -1: none.
            kind: kill, torn (half of a write, then kill), or the name of an errno such as ENOSPC.
            sticky: all later operations fail too.
            limit: seconds until the run is killed.
            signals: (seconds after the start, number).
            patience: seconds that the run's other processes have to end (torch's workers look every 5 s for the one
                that started them).
            before: a `module:function` and its arguments, for the new process to call first.
        """
        log = self._folder / "run.log"
        log.unlink(missing_ok=True)
        fault = {"at": at, "kind": kind, "sticky": sticky, "limit": limit, "signals": list(signals)}
        fault |= {"patience": patience, "before": before, "prefix": str(prefix.resolve()), "log": str(log)}
        return Outcome(**self._ask(request | fault), output=log.read_text(errors="replace") if log.exists() else "")

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the zygote died: {self._log.read_text(errors='replace')[-2000:]}")
        return json.loads(line)
