"""Batches with bad numbers, and batches that do not fit into memory."""

import json
import re
from pathlib import Path

import pytest
import torch

from returnn_hydra.batch import Batch
from returnn_hydra.engine.bad_batch import load_batch, save_batch
from returnn_hydra.engine.errors import DamagedStateError
from returnn_hydra.engine.files import FileSystem

STEP = """
import torch
from returnn_hydra.steps.cross_entropy import CrossEntropy
from returnn_hydra.batch import Loss
from dataclasses import replace
_step = CrossEntropy()
_calls = []
def train_step(model, batch):
    losses = _step(model, batch)
    if model.training and {when}:
        {what}
    return losses
"""
NAN = "losses['ce'] = replace(losses['ce'], sum=losses['ce'].sum * float('nan'))"
OVERFLOW = "model.output.bias.data[0] = float('inf')"
WORDS = (
    "task=train",
    "overrides=mine.py",
    "model.hidden_dim=4",
    "num_epochs=2",
    "model.input_noise=0",
    "model.input_norm=false",
    "learning_rate=0.001",
    "name=x",
)
BAD_TAG = "'train-speaker3-014' in batch.seq_tags"


def write(when, what):
    Path("mine.py").write_text(STEP.format(when=when, what=what))


def scores(name="x"):
    return [json.loads(line) for line in Path(f"outputs/{name}/scores.jsonl").read_text().splitlines()]


def test_stop_names_step_losses_and_sequences_and_saves_the_batch(command, capsys):
    write(BAD_TAG, NAN)
    assert command(*WORDS) == 76
    message = capsys.readouterr().err
    assert "nan" in message
    assert "train-speaker3-014" in message
    assert "task=replay" in message
    assert not list(Path("outputs/x/checkpoints").glob("model.*.pt"))
    (file,) = Path("outputs/x/bad_batches").glob("*.pt")
    assert "train-speaker3-014" in load_batch(file, FileSystem()).seq_tags


def test_nothing_is_updated_by_a_bad_batch(command):
    """The bad batch is the last one of the first epoch: RETURNN saves a checkpoint of NaN there."""
    write("batch.epoch == 1 and len(batch.seq_tags) == 3", NAN)  # 243 sequences in batches of at most 20
    assert command(*WORDS, "max_seqs=20", "datasets.train.seq_ordering=default") == 76
    assert not list(Path("outputs/x/checkpoints").glob("model.*.pt"))


@pytest.mark.parametrize("rule", ["stop", "skip", "rollback"])
def test_parameters_that_overflow_in_the_last_update_are_not_saved(command, capsys, rule):
    write("batch.epoch == 2 and len(batch.seq_tags) == 3", OVERFLOW)
    words = ("datasets.train.seq_ordering=default", f"on_nonfinite={rule}", "max_consecutive_nonfinite=2")
    assert command(*WORDS, *words) == 76
    assert "output.bias: not saved" in capsys.readouterr().err
    assert [file.name for file in Path("outputs/x/checkpoints").glob("model.*.json")] == ["model.001.json"]
    assert [line["epoch"] for line in scores()] == [1]


@pytest.mark.parametrize("rule", ["stop", "skip", "rollback"])
def test_parameters_that_overflow_within_an_epoch_are_not_saved(command, rule):
    write(f"batch.epoch == 2 and {BAD_TAG}", OVERFLOW)
    words = ("checkpoint_every.steps=1", f"on_nonfinite={rule}", "max_consecutive_nonfinite=2")
    assert command(*WORDS, *words) == 76
    files = list(Path("outputs/x/checkpoints").glob("model.*.json"))
    assert len(files) == 3  # the first epoch, and both slots
    for file in files:
        assert torch.load(file.with_suffix(".pt"), weights_only=True)["model"]["output.bias"].isfinite().all()


def test_skip_goes_on_and_counts(command):
    write(BAD_TAG, NAN)
    assert command(*WORDS, "on_nonfinite=skip") == 0
    lines = scores()
    assert lines[-1]["step"] == sum(line["statistics"]["num_batches"] for line in lines) - len(lines)
    model = torch.load("outputs/x/checkpoints/model.002.pt", weights_only=True)["model"]
    assert all(bool(torch.isfinite(value).all()) for value in model.values())


def test_skip_has_a_limit(command):
    write("True", NAN)
    assert command(*WORDS, "on_nonfinite=skip", "max_consecutive_nonfinite=3") == 76


def test_rollback_leaves_the_batch_out(command, capsys):
    write(f"batch.epoch == 2 and {BAD_TAG}", NAN)
    assert command(*WORDS, "on_nonfinite=rollback") == 0
    lines = scores()
    assert [line["epoch"] for line in lines] == [1, 2]
    batches = [line["statistics"]["num_batches"] for line in lines]
    assert lines[-1]["step"] == sum(batches) - 1


def test_rollback_leaves_several_batches_out(command):
    write(f"batch.epoch == 2 and ({BAD_TAG} or 'train-speaker5-001' in batch.seq_tags)", NAN)
    assert command(*WORDS, "on_nonfinite=rollback") == 0
    lines = scores()
    assert lines[-1]["step"] == sum(line["statistics"]["num_batches"] for line in lines) - 2


def test_rollback_without_a_checkpoint_stops(command):
    write(BAD_TAG, NAN)
    assert command(*WORDS, "on_nonfinite=rollback") == 76


def test_replay_says_where_it_comes_from(command, capsys):
    write(f"batch.epoch == 2 and {BAD_TAG}", NAN)
    assert command(*WORDS) == 76
    capsys.readouterr()
    assert command("task=replay", *WORDS[1:]) == 0
    text = capsys.readouterr().out
    assert "train-speaker3-014: ce nan" in text
    assert "gradient norm of" in text


def oom(limit):
    return (f"batch.num_seqs > {limit}", "raise torch.OutOfMemoryError('CUDA out of memory (a made-up one)')")


def test_out_of_memory_names_the_batch(command, capsys):
    write(*oom(10))
    assert command(*WORDS) == 71
    message = capsys.readouterr().err
    assert "data (" in message
    assert "longest sequence 'train-" in message


@pytest.mark.parametrize("limit", [10, 3, 1])
def test_split_gives_the_same_training(command, limit):
    write("False", "pass")
    assert command(*WORDS[:-1], "name=whole") == 0
    write(*oom(limit))
    assert command(*WORDS[:-1], "on_oom=split", "name=split") == 0
    whole, split = scores("whole"), scores("split")
    for one, two in zip(whole, split, strict=True):
        assert one["step"] == two["step"]
        for dataset, entries in one["scores"].items():
            for name, score in entries.items():
                assert two["scores"][dataset][name]["count"] == score["count"]
                assert two["scores"][dataset][name]["mean"] == pytest.approx(score["mean"], rel=1e-3)


def test_batches_survive_a_file(tmp_path):
    import numpy as np

    batch = Batch(
        {"data": torch.randn(2, 3, 4), "text": np.array(["a", "bc"])}, {"data": torch.tensor([3, 2])}, ["s", "t"], 7
    )
    loaded = load_batch(save_batch(tmp_path, batch, 5, FileSystem()), FileSystem())
    assert torch.equal(loaded["data"], batch["data"])
    assert loaded["text"].tolist() == ["a", "bc"]
    assert (loaded.seq_tags, loaded.epoch) == (["s", "t"], 7)


def test_another_file_is_refused(tmp_path):
    torch.save({"model": {}}, tmp_path / "x.pt")
    with pytest.raises(DamagedStateError, match="holds no batch"):
        load_batch(tmp_path / "x.pt", FileSystem())


@pytest.mark.parametrize("where", ["model.training", "not model.training"])
def test_an_error_of_a_step_names_the_batch(where, command, capsys):
    step = STEP.replace("model.training", where).format(when="True", what="raise ValueError('mine')")
    Path("mine.py").write_text(step)
    assert command(*WORDS) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"^ERROR 1: ValueError: mine; the batch: data \(\d+, \d+, 12\), .* sequence '(train|dev)-sp", last)
