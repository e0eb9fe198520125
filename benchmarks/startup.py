#!/usr/bin/env python3
"""How soon the program answers, and how soon it trains, in turns with what it is compared to.

    RETURNN_PYTHON=PATH python benchmarks/startup.py [--rounds 9]

* `run.py --help` against `python -c "import hydra"`
* from the command to the first update of the default experiment, against RETURNN (with a Python that has it) from its
  start to the first update: the same data from HDF files, the same layers, in one process; and with one process that
  reads, its default.

Printed are medians over the rounds, of CPU time and of wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.embedded import japanese_vowels
from returnn_hydra.data.hdf_writer import HDFWriter

HERE = Path(__file__).parent
Times = dict[str, float]


def whole_process(*command: str) -> Times:
    """CPU and wall seconds of a command."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    wall, after = time.time() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, "wall": wall}


def first_update(python: str, folder: Path, *words: str) -> Times:
    """CPU and wall seconds until the first update."""
    for old in ("ours", "returnn"):
        shutil.rmtree(folder / old, ignore_errors=True)
    command = [python, str(HERE / "startup_peer.py"), words[0], str(folder), *words[1:]]
    paths = {"PYTHONPATH": f"{HERE.parent}:{HERE}", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **paths, "STARTED": str(time.time())}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith('{"cpu"')]
    if not found:
        raise SystemExit(f"{words}: no update was made\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return json.loads(found[-1])


def write_corpus(path: Path, part: str) -> None:
    """The default experiment's data as an HDF file for RETURNN."""
    dataset = japanese_vowels(part)
    with HDFWriter(str(path), {"data": TensorSpec(dim=12), "classes": TensorSpec(dim=9, sparse=True)}) as writer:
        examples = dataset.read(np.arange(len(dataset)))
        for index, tag in enumerate(examples.seq_tags):
            features, label = examples.streams["data"][index], examples.streams["classes"][index]
            writer.write(tag, {"data": features, "classes": np.atleast_1d(label)})


def in_turns(rounds: int, candidates: dict[str, Callable[[], Times]]) -> None:
    """Print the medians of all, and their ratios to the first."""
    times: dict[str, list[Times]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            times[name].append(run())
    first = next(iter(candidates))
    for name, runs in times.items():
        parts = []
        for clock in ("cpu", "wall"):
            median = statistics.median(run[clock] for run in runs)
            ratio = statistics.median(a[clock] / b[clock] for a, b in zip(times[first], runs, strict=True))
            parts.append(f"{median:5.2f} s {clock}" + (f" ({first} takes {ratio:.2f} x)" if name != first else ""))
        print(f"{name:36} {', '.join(parts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=os.environ.get("RETURNN_PYTHON"), help="a Python that has RETURNN")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    in_turns(
        arguments.rounds,
        {
            "--help": lambda: whole_process(str(HERE.parent / "run.py"), "--help"),
            "import hydra": lambda: whole_process("-c", "import hydra"),
        },
    )
    with tempfile.TemporaryDirectory() as name:
        folder, peer = Path(name), arguments.peer_python
        write_corpus(folder / "train.hdf", "train")
        write_corpus(folder / "dev.hdf", "dev")
        candidates = {"first update": lambda: first_update(sys.executable, folder, "ours")}
        if peer:
            candidates["RETURNN, one process"] = lambda: first_update(peer, folder, "returnn", "0")
            candidates["RETURNN, a process that reads"] = lambda: first_update(peer, folder, "returnn", "1")
        in_turns(arguments.rounds, candidates)


if __name__ == "__main__":
    main()
