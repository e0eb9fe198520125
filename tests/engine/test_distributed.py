"""Two processes on the CPU (gloo): the same training as one process that accumulates the two batches."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
# six batches of 41 sequences: they come out even, so that no batch is cut in two
WORDS = (
    "task=train",
    "model.hidden_dim=4",
    "num_epochs=2",
    "batch_size=100000",
    "max_seqs=41",
    "model.input_noise=0",
    "model.input_norm=false",
)


def torchrun(folder, *words, wait=True):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    process = subprocess.Popen(
        [*program, str(ROOT / "run.py"), *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if wait:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    return process


def scores(folder):
    return [json.loads(line)["scores"] for line in (Path(folder) / "scores.jsonl").read_text().splitlines()]


def means(lines):
    return [value["mean"] for line in lines for entries in line.values() for value in entries.values()]


def counts(lines):
    return [value["count"] for line in lines for entries in line.values() for value in entries.values()]


def model_of(folder):
    return torch.load(Path(folder) / "checkpoints/model.002.pt", weights_only=True)["model"]


def test_two_ranks_are_one_process_that_accumulates(command, tmp_path):
    assert command(*WORDS, "grad_accum_steps=2", "name=one") == 0
    torchrun(tmp_path, *WORDS, "name=two")
    one, two = scores("outputs/one"), scores("outputs/two")
    assert counts(one) == counts(two)  # every sequence exactly once, in training and in evaluation
    assert means(one) == pytest.approx(means(two), rel=1e-4)
    first, second = model_of("outputs/one"), model_of("outputs/two")
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["one", "two"]


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_which_then_resumes(tmp_path):
    slow = (*WORDS, "num_epochs=400", "name=killed", "checkpoint_every.steps=5")
    process = torchrun(tmp_path, *slow, wait=False)
    scores_file = tmp_path / "outputs/killed/scores.jsonl"
    until = time.monotonic() + 60
    while not scores_file.is_file():
        assert time.monotonic() < until
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    ranks = [child for child in psutil.Process(process.pid).children(recursive=True) if "run.py" in child.cmdline()[-9]]
    ranks = ranks or psutil.Process(process.pid).children()
    started = time.monotonic()
    os.kill(ranks[-1].pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert time.monotonic() - started < 15
    assert not [rank for rank in ranks if rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE]
    epochs = len(scores(tmp_path / "outputs/killed"))
    again = torchrun(tmp_path, *WORDS, f"num_epochs={epochs + 1}", "name=killed", "checkpoint_every.steps=5")
    assert again.returncode == 0
    whole = torchrun(tmp_path, *WORDS, f"num_epochs={epochs + 1}", "name=whole", "checkpoint_every.steps=5")
    assert whole.returncode == 0
    assert scores(tmp_path / "outputs/killed") == scores(tmp_path / "outputs/whole")


def test_batch_norm_with_evaluation(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class model(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.norm, self.linear = nn.BatchNorm1d(12), nn.Linear(12, 9)\n"
        "    def forward(self, features, lengths):\n"
        "        return self.linear(self.norm(features.transpose(1, 2)).transpose(1, 2)), lengths\n"
    )
    words = [word for word in WORDS if not word.startswith("model.")]
    torchrun(tmp_path, *words, "name=norm", "overrides=mine.py")
    assert len(scores(tmp_path / "outputs/norm")) == 2


def test_another_number_of_ranks_is_refused(command, tmp_path, capsys):
    assert command(*WORDS, "num_epochs=1", "name=x") == 0
    process = torchrun(tmp_path, *WORDS, "name=x", wait=False)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "world_size: 1 -> 2" in output
