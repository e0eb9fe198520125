"""A run that is interrupted anywhere ends with the same bits as one that is not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from returnn_hydra.engine.run_store import RunStore

ROOT = Path(__file__).resolve().parents[2]
WORDS = (
    "task=train",
    "model.hidden_dim=4",
    "num_epochs=2",
    "batch_size=1200",
    "max_seqs=null",
    "model.dropout=0.1",
    "model.input_noise=0.3",
    "checkpoint_every.steps=1",
    "learning_rate_control=newbob",
)


class Interrupted(BaseException):
    pass


def final_state(name):
    folder = Path("outputs") / name
    model = torch.load(folder / "checkpoints/model.002.pt", weights_only=True)
    optimizer = torch.load(folder / "checkpoints/model.002.opt.pt", weights_only=True)
    lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    scores = [(line["epoch"], line["learning_rate"], line["scores"], line["step"]) for line in lines]
    return model, optimizer, scores


def assert_identical(one, two):
    def flat(value, path=""):
        if isinstance(value, dict):
            for key, item in value.items():
                yield from flat(item, f"{path}.{key}")
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                yield from flat(item, f"{path}[{index}]")
        else:
            yield path, value

    first, second = dict(flat(one)), dict(flat(two))
    assert first.keys() == second.keys()
    for path, value in first.items():
        if path.endswith("run_id"):
            continue
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[path]), path
        else:
            assert value == second[path], path


@pytest.mark.parametrize(
    "extra",
    [(), ("grad_accum_steps=2",), ("optimizer=sgd", "max_grad_norm=0.5"), ("learning_rate_control=cosine",)],
    ids=str,
)
def test_every_step_is_a_resume_point(command, monkeypatch, extra):
    assert command(*WORDS, *extra, "name=whole") == 0
    whole = final_state("whole")
    save = RunStore.save_within_epoch
    calls = {"n": 0, "limit": 0}

    def save_and_die(self, trainer):
        save(self, trainer)
        calls["n"] += 1
        if calls["n"] == calls["limit"]:
            self.saver.wait()
            raise Interrupted

    monkeypatch.setattr(RunStore, "save_within_epoch", save_and_die)
    restarts = 0
    while True:  # each process makes one more step than the one before; in the last of an epoch there is none left
        calls.update(n=0, limit=1)
        try:
            assert command(*WORDS, *extra, "name=parts") == 0
            break
        except Interrupted:
            restarts += 1
    assert restarts >= (4 if extra and "accum" in extra[0] else 8)
    assert_identical(whole, final_state("parts"))


def test_killed_between_checkpoint_and_evaluation(command, monkeypatch, capsys):
    assert command(*WORDS, "name=whole") == 0

    def die(self, batches):
        self.saver.wait()
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "until_stopped", die)
        with pytest.raises(Interrupted):
            command(*WORDS, "name=parts")
    assert command(*WORDS, "name=parts") == 0
    assert "its evaluation is missing" in capsys.readouterr().out
    assert_identical(final_state("whole"), final_state("parts"))


def test_damaged_newest_checkpoint_falls_back_and_ends_identical(command, capsys):
    assert command(*WORDS, "name=whole") == 0
    assert command(*WORDS, "name=parts") == 0
    file = Path("outputs/parts/checkpoints/model.002.pt")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    capsys.readouterr()
    assert command(*WORDS, "name=parts") == 0
    assert "model.002.pt" in capsys.readouterr().out
    assert_identical(final_state("whole"), final_state("parts"))


def test_damaged_scores_file_costs_an_evaluation_only(command):
    assert command(*WORDS, "name=whole") == 0
    assert command(*WORDS, "name=parts") == 0
    file = Path("outputs/parts/scores.jsonl")
    file.write_text(file.read_text().replace("0.", "1.", 3))
    assert command(*WORDS, "name=parts") == 0
    assert_identical(final_state("whole"), final_state("parts"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_signal_saves_and_exits(tmp_path, number, code):
    words = [sys.executable, str(ROOT / "run.py"), "task=train", "name=x", "num_epochs=500", "model.hidden_dim=4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    scores = tmp_path / "outputs/x/scores.jsonl"
    while not scores.is_file():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    started = time.monotonic()
    _, error = process.communicate(timeout=20)
    assert time.monotonic() - started < 6
    assert process.returncode == code, error
    assert "is saved" in error
    result = json.loads((tmp_path / "outputs/x/result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("stopped", code)
    assert not (tmp_path / "outputs/x/run.lock").read_text()


def test_kill_9_frees_the_folder_and_resumes(tmp_path):
    words = [sys.executable, str(ROOT / "run.py"), "task=train", "name=x", "model.hidden_dim=4", "num_epochs=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*words[:-1], "num_epochs=500"], cwd=tmp_path, env=environment)
    while not (tmp_path / "outputs/x/scores.jsonl").is_file():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    again = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "Resumed" in again.stdout or "nothing to do" in again.stdout
