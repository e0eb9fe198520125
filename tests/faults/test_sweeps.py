"""A sweep whose process is killed, and the same command again: finished jobs stay as they are, the others are done."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
WORDS = ["-m", "seed=1,2,3,4", "num_epochs=4", "model.hidden_dim=4", "num_threads=1", "log_verbosity=1", "keep_last=1"]
NUM_JOBS = 4


def start(folder):
    words = [sys.executable, str(ROOT / "run.py"), *WORDS, f"outputs={folder}"]
    return subprocess.Popen(words, cwd=folder.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finished(folder):
    """Job to the files of its last epoch, as (name, time of writing, content); only of jobs that are done."""
    jobs = {}
    for result in folder.glob("*/result.json"):
        if json.loads(result.read_text())["status"] == "done":
            files = sorted(result.parent.glob("checkpoints/model.*"))
            jobs[result.parent.name] = [(file.name, file.stat().st_mtime_ns, file.read_bytes()) for file in files]
    return jobs


def outcome(folder):
    """Job to its scores, learning rates and steps, and its parameters."""
    outcomes = {}
    for job in (scores.parent for scores in folder.glob("*/scores.jsonl")):
        records = [json.loads(line) for line in (job / "scores.jsonl").read_text().splitlines()]
        model = torch.load(job / "checkpoints/model.004.pt", weights_only=True)["model"]
        numbers = [[record[key] for key in ("epoch", "learning_rate", "step", "scores")] for record in records]
        outcomes[job.name] = (numbers, {name: tensor.tolist() for name, tensor in model.items()})
    return outcomes


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "reference"
    started = time.monotonic()
    assert start(folder).wait() == 0
    seconds = time.monotonic() - started
    assert len(outcome(folder)) == NUM_JOBS
    return seconds, outcome(folder)


def kill_and_go_on(folder, after, expected):
    """Kill the sweep after so many seconds and start it again; returns how many jobs were done by then."""
    killed = start(folder)
    time.sleep(after)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    before = finished(folder)
    assert start(folder).wait() == 0
    after_all = finished(folder)
    assert len(after_all) == NUM_JOBS
    assert {job: after_all[job] for job in before} == before
    assert outcome(folder) == expected
    return len(before)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_sweep_that_is_killed_at_any_time(tmp_path, tally, reference):
    (seconds, expected), count = reference, tally("a sweep killed, and started again")
    done = [
        count.add(kill_and_go_on, tmp_path / str(number), seconds * (0.3 + 0.7 * number / 20), expected)
        for number in range(20)
    ]
    count.close()
    assert len(set(done)) > 2, f"the times hit few states: {done}"
