"""status.json tells what a live training does, and what became of it."""

import json
import os
import socket
from pathlib import Path

import pytest

from returnn_hydra.engine import status as module
from returnn_hydra.engine.errors import NonFiniteError, StateWriteError, Stopped
from returnn_hydra.engine.files import FileSystem
from returnn_hydra.engine.lock import RunLock
from returnn_hydra.engine.trainer import Trainer

WORDS = ("task=train", "name=x", "num_epochs=2", "batch_size=1200", "max_seqs=null", "model.hidden_dim=4")


def read(folder="outputs/x"):
    return json.loads((Path(folder) / "status.json").read_text())


@pytest.fixture
def seen(monkeypatch):
    """What was in the file after each time it was written."""
    found = []

    def write(disk, path, text, **options):
        write_text(disk, path, text, **options)
        if path.name == "status.json":
            found.append(read(path.parent))

    write_text = module.write_text
    monkeypatch.setattr(module, "write_text", write)
    return found


def test_a_training_from_its_start_to_its_end(command, seen):
    assert command(*WORDS) == 0
    states = [(status["state"], status.get("epoch"), status.get("batch"), status.get("dataset")) for status in seen]
    epochs = [
        [("training", epoch, 0, None), *(("evaluating", epoch, 5, name) for name in ("dev", "eval"))]
        + [("training", epoch, 5, None)]
        for epoch in (1, 2)
    ]
    assert states == [("starting", None, None, None), *epochs[0], *epochs[1], ("done", 2, 5, None)]
    last = seen[-1]
    assert (last["pid"], last["host"], last["exit_code"]) == (os.getpid(), socket.gethostname(), 0)
    assert (last["num_epochs"], last["num_batches"]) == (2, 5)
    assert all(status["since"] <= status["written"] for status in seen)


def test_the_batch_is_written_now_and_then_not_at_every_step(command, seen, monkeypatch):
    monkeypatch.setattr(module, "EVERY_SECONDS", 0.0)
    assert command(*WORDS) == 0
    batches = [status["batch"] for status in seen if status["state"] == "training" and status["epoch"] == 1]
    assert batches == [0, 1, 2, 3, 4, 5, 5]


def test_since_is_when_the_state_began(tmp_path, monkeypatch):
    with module.StatusFile(tmp_path) as status:
        since = read(tmp_path)["since"]
        status._since = "2000-01-01T00:00:00+00:00"
        status._write("starting")
        assert read(tmp_path)["since"] < since
        status._write("training")
        assert read(tmp_path)["since"] >= since


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [(Stopped("SIGINT", 130), "stopped", 130), (NonFiniteError("NaN"), "failed", 76), (RuntimeError(), "failed", 1)],
)
def test_how_it_ended(command, monkeypatch, error, state, code):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(Trainer, "train_batch", fail)
    assert command(*WORDS) == code
    status = read()
    assert (status["state"], status["exit_code"], status["epoch"], status["batch"]) == (state, code, 1, 0)


def test_a_run_that_is_not_let_in_leaves_the_status_of_the_live_one(command):
    folder = Path("outputs/x")
    with RunLock(folder), module.StatusFile(folder):
        before = read()
        assert command(*WORDS) == 73
        assert read() == before


def test_a_full_disk_is_told_unless_there_is_something_worse_to_tell(tmp_path, monkeypatch):
    class Full(FileSystem):
        def write(self, handle, data):
            raise OSError(28, "No space left on device")

    with pytest.raises(StateWriteError, match=r"status\.json"), module.StatusFile(tmp_path, Full()):
        pass
    status = module.StatusFile(tmp_path, Full())
    status.__exit__(NonFiniteError, NonFiniteError("NaN"), None)
    assert not list(tmp_path.iterdir())
