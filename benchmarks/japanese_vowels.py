"""Accuracy of the default experiment on the official 370 utterances, and the CPU seconds of its training.

    python benchmarks/japanese_vowels.py [--seeds 1 2 3 4 5]

Runs `run.py task=train model=blstm seed=N` as a user does (one thread). CPU seconds are those of the
whole process, evaluation and checkpoints after every epoch included, less those of a run of one epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(folder: str, *words: str) -> float:
    """CPU seconds of one command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "run.py"), "log_verbosity=1", "num_threads=1", *words]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    accuracies, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        start = run(folder, "task=train", "num_epochs=1", "name=start")
        for seed in parser.parse_args().seeds:
            seconds.append(run(folder, "task=train", "model=blstm", f"seed={seed}", f"name=s{seed}") - start)
            lines = (Path(folder) / f"outputs/s{seed}/scores.jsonl").read_text().splitlines()
            accuracies.append(1 - json.loads(lines[-1])["scores"]["eval"]["error"]["mean"])
            print(f"seed {seed}: accuracy {accuracies[-1]:.4f}, {seconds[-1]:.1f} CPU seconds", flush=True)
    print(
        f"mean accuracy {statistics.mean(accuracies):.4f} "
        f"({min(accuracies):.3f}-{max(accuracies):.3f}), {statistics.mean(seconds):.1f} CPU seconds"
    )


if __name__ == "__main__":
    main()
