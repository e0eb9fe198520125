"""Every word of the optimisation from the command line, in tiny runs: each has the effect that it names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
FEED_FORWARD = """
import torch as _torch
from returnn_hydra.batch import Loss as _Loss
def model():
    return _torch.nn.Linear(12, 9)
def train_step(model, batch):
    logits = model(batch["data"]).mean(1)
    loss = _torch.nn.functional.cross_entropy(logits.float(), batch["classes"][:, 0].long(), reduction="sum")
    return {"ce": _Loss(loss, batch.num_seqs)}
"""
WORDS = ("task=train", "model.hidden_dim=4", "num_epochs=1", "max_seqs=40", "learning_rate_control=constant")


def model(name, epoch=1):
    return torch.load(f"outputs/{name}/checkpoints/model.{epoch:03d}.pt", weights_only=True)["model"]


def optimizer(name):
    return torch.load(f"outputs/{name}/checkpoints/model.001.opt.pt", weights_only=True)


def lines(name):
    return [json.loads(line) for line in Path(f"outputs/{name}/scores.jsonl").read_text().splitlines()]


def changes(one, two):
    return {name for name, value in one.items() if not torch.equal(value, two[name])}


@pytest.mark.parametrize(
    "word",
    [
        "gradient_noise=0.1",
        "max_grad_value=0.001",
        "max_grad_norm=0.01",
        "max_grad_norm_per_tensor=0.01",
        "grad_accum_steps=2",
        "loss_normalization=sum",
        "amp=bfloat16",
        "optimizer.weight_decay=0.5",
    ],
)
def test_changes_the_training_and_comes_again_to_the_bit(command, word):
    for name in ("with", "again"):
        assert command(*WORDS, "optimizer=sgd", f"name={name}", word) == 0
    assert command(*WORDS, "optimizer=sgd", "name=without") == 0
    assert changes(model("with"), model("without"))
    assert not changes(model("with"), model("again"))


def test_a_limit_on_every_element_of_the_gradient(command):
    """Plain SGD with rate 1: no element moves by more than the limit in a step."""
    words = (*WORDS, "optimizer=sgd", "optimizer.momentum=0", "learning_rate=1", "max_seqs=null", "batch_size=100000")
    assert command(*words, "max_grad_value=0.001", "name=x") == 0
    assert command(*words, "learning_rate=0", "name=start") == 0
    start, moved = model("start"), model("x")
    steps = [(moved[name] - start[name]).abs().max() for name in start if not name.startswith("input_norm")]
    assert 0 < float(max(steps)) <= 0.001 + 1e-6


def test_groups_and_frozen_parameters(command):
    """Rates and decay by glob; a frozen parameter does not move."""
    assert command(*WORDS, "learning_rate=0", "name=start") == 0
    names = sorted(name for name in model("start") if not name.startswith("input_norm"))
    frozen = [name for name in names if name.startswith("output")]
    slow = [name for name in names if "weight_hh" in name]
    assert frozen
    assert slow
    words = (
        "freeze=[output*]",
        "learning_rate_multipliers={*weight_hh*: 0.0}",
        "optimizer=adamw",
        "optimizer.weight_decay=0.25",
        "weight_decay_exclude=['*weight_ih*']",
    )
    assert command(*WORDS, *words, "name=x") == 0
    moved = changes(model("start"), model("x"))
    assert not moved & {*frozen, *slow}
    assert moved >= set(names) - {*frozen, *slow}
    saved = optimizer("x")
    assert not set(frozen) & set(saved["param_names"])
    groups = saved["optimizer"]["param_groups"]
    assert {(group["weight_decay"], group["learning_rate_multiplier"]) for group in groups} == {
        (0.25, 1.0),
        (0.25, 0.0),
        (0.0, 1.0),
    }
    by_number = dict(enumerate(saved["param_names"]))
    undecayed = {by_number[n] for group in groups if group["weight_decay"] == 0.0 for n in group["params"]}
    assert undecayed == {name for name in names if "weight_ih" in name}


def test_float16_with_a_scaler(command):
    """On the CPU too: the scale is in the state, and a resumed run ends with the same bits."""
    Path("mine.py").write_text(FEED_FORWARD)
    words = ("task=train", "overrides=mine.py", "learning_rate_control=constant", "amp=float16")
    assert command(*words, "num_epochs=2", "name=whole") == 0
    assert command(*words, "num_epochs=1", "name=parts") == 0
    assert command(*words, "num_epochs=2", "name=parts") == 0
    manifest = json.loads(Path("outputs/parts/checkpoints/model.002.json").read_text())
    assert manifest["state"]["updater"]["scaler"]["scale"] > 1
    assert not changes(model("whole", 2), model("parts", 2))


def test_early_stopping_on_a_declared_score(command, capsys):
    words = ("callbacks=early_stopping", "callbacks.early_stopping.patience=2", "num_epochs=9", "learning_rate=0")
    assert command(*WORDS, *words, "score=dev/error", "name=x") == 0
    assert [line["epoch"] for line in lines("x")] == [1, 2, 3]
    assert "Early stopping: no better score" in capsys.readouterr().out
    assert command(*WORDS, *words, "score=dev/error", "name=x") == 0
    assert len(lines("x")) == 3
    assert command(*WORDS, *words, "score=dev/eror", "name=y") == 2
    assert "did you mean 'dev/error'?" in capsys.readouterr().err


def test_the_average_of_checkpoints_is_loaded(command):
    assert command(*WORDS, "num_epochs=3", "name=x") == 0
    script = [sys.executable, str(ROOT / "scripts/average_checkpoints.py"), "outputs/x", "2", "3", "--out", "mean.pt"]
    subprocess.run(script, check=True, capture_output=True)
    assert command(*WORDS, "init_from=mean.pt", "learning_rate=0", "name=y") == 0
    mean, two, three = model("y"), model("x", 2), model("x", 3)
    for name, value in mean.items():
        if not name.startswith("input_norm"):
            torch.testing.assert_close(value, (two[name] + three[name]) / 2)


@pytest.mark.slow
def test_compile(command):
    """The same training but for rounding. (Compiled dropout and noise draw other random numbers.)"""
    words = (*WORDS, "model.dropout=0", "model.input_noise=0")
    assert command(*words, "compile=true", "name=x") == 0
    assert command(*words, "name=y") == 0
    for name, value in model("x").items():
        torch.testing.assert_close(value, model("y")[name], rtol=1e-3, atol=1e-4)
