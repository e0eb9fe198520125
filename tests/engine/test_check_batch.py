"""debug.check_batch: the largest batch goes first, and leaves no trace."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from returnn_hydra.data.batching import Batching
from returnn_hydra.data.embedded import japanese_vowels
from returnn_hydra.data.loader import Loader
from returnn_hydra.data.order import SeqOrder
from returnn_hydra.engine.check_batch import untouched

WORDS = (
    "task=train",
    "overrides=mine.py",
    "model.hidden_dim=4",
    "model.dropout=0.2",
    "num_epochs=2",
    "batch_size=600",
    "name=x",
)
STEP = """
import torch
from pathlib import Path
from returnn_hydra.steps.cross_entropy import CrossEntropy
_step = CrossEntropy()
def train_step(model, batch):
    if model.training:
        with open("seen.txt", "a") as file:
            print(batch.num_seqs * batch["data"].shape[1], batch["data"].shape[1], file=file)
        {what}
    return _step(model, batch)
"""
OOM = "if batch.num_seqs * batch['data'].shape[1] > 510: raise {error}('{words}')"


def write(what="pass"):
    Path("mine.py").write_text(STEP.format(what=what))
    Path("seen.txt").unlink(missing_ok=True)


def seen():
    return [int(line.split()[0]) for line in Path("seen.txt").read_text().splitlines()]


def results(name):
    lines = [json.loads(line) for line in Path(f"outputs/{name}/scores.jsonl").read_text().splitlines()]
    model = torch.load(f"outputs/{name}/checkpoints/model.002.pt", weights_only=True)["model"]
    return [(line["scores"], line["step"]) for line in lines], model


def test_the_loss_sequence_stays_the_same_to_the_bit(command, capsys):
    write()
    assert command(*WORDS, "name=plain") == 0
    plain, plain_sizes = results("plain"), seen()
    write()
    assert command(*WORDS, "name=checked", "debug.check_batch=true") == 0
    checked, sizes = results("checked"), seen()
    assert "The largest batch of epoch 2 fits: number" in capsys.readouterr().out
    assert plain[0] == checked[0]
    assert all(torch.equal(value, checked[1][name]) for name, value in plain[1].items())
    half = len(sizes) // 2
    assert sizes == [max(plain_sizes[: half - 1]), *plain_sizes[: half - 1], sizes[half], *plain_sizes[half - 1 :]]
    assert sizes[half] == max(plain_sizes[half - 1 :])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("torch.OutOfMemoryError", "CUDA out of memory (a made-up one)"),
        ("MemoryError", ""),
        ("RuntimeError", "DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_batch_that_does_not_fit_ends_the_run_before_the_first_step(command, capsys, error, words):
    write(OOM.format(error=error, words=words))
    assert command(*WORDS, "debug.check_batch=true") == 71
    message = capsys.readouterr().err
    assert "longest sequence 'train-" in message
    assert "data (" in message
    assert len(seen()) == 1


def test_a_batch_that_will_be_split_is_only_told(command, capsys):
    write(OOM.format(error="torch.OutOfMemoryError", words="CUDA out of memory"))
    assert command(*WORDS, "debug.check_batch=true", "on_oom=split", "num_epochs=1") == 0
    assert "The largest batch will be split" in capsys.readouterr().out


def test_nothing_is_left_behind():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    following = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with untouched(model, torch.device("cpu")):
        model(torch.randn(4, 3)).sum().backward()
        random.random(), np.random.rand()
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (random.random(), np.random.rand(), torch.rand(1)) == following


def test_the_largest_batch_is_found():
    for batching in (
        Batching(batch_size=300),
        Batching(max_seqs=7),
        Batching(batch_size=500, chunking=[{"data": 10}, {"data": 10}]),
    ):
        loader = Loader(japanese_vowels("train"), None, SeqOrder("random"), batching)
        for epoch in (1, 2):
            sizes = [
                sum(batch.num_seqs * batch[name].shape[1] for name in batch.lengths) for batch in loader.epoch(epoch)
            ]
            assert loader.largest_batch(epoch) == int(np.argmax(sizes))
