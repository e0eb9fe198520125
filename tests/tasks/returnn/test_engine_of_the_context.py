"""Configs of generated setups, whose functions ask `run_ctx.engine` for the model and the data."""

from pathlib import Path

import pytest

from returnn_hydra.compat.shim.datasets import OptionsFace, init_dataset
from returnn_hydra.compat.shim.engine_face import EngineFace

NET = """
import torch
from returnn.torch.context import get_run_ctx
from torch import nn

from .parts import Block


class Model(nn.Module):
    def __init__(self, features, classes, hidden):
        super().__init__()
        self.block = Block(features, hidden)
        self.out = nn.Linear(hidden, classes)

    @classmethod
    def of_config(cls, epoch, step, *, hidden, **kwargs):
        engine = get_run_ctx().engine
        dataset = (engine.train_dataset or engine.forward_dataset).datasets["toy"]
        return cls(dataset.num_outputs["data"][0], dataset.num_outputs["classes"][0], hidden)

    def forward(self, x):
        return self.out(torch.relu(self.block(x)))


class Twice(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return torch.cat([self.inner(x)] * 2, dim=1)


def init(run_ctx, config, **kwargs):
    run_ctx.engine._model = Twice(run_ctx.engine._model)
    run_ctx.file = open(config["file"], "w")


def step(*, model, data, run_ctx, config, **kwargs):
    frames = model(data["data"]).shape[1]
    for tag, length in zip(data["seq_tag"], data["data:size1"].to("cpu")):
        run_ctx.file.write(f"{tag} {int(length)} {frames}\\n")


def finish(run_ctx, config, **kwargs):
    run_ctx.file.close()


forward_hooks = (init, step, finish)
"""
PARTS = """
from torch import nn


class Block(nn.Linear):
    pass
"""
STEPS = """
from torch import nn


def step_of_context(*, model, data, train_ctx, global_train_step, **kwargs):
    assert train_ctx.engine._model is model and global_train_step == train_ctx.step
    lengths = data["data:size1"]
    logits = nn.utils.rnn.pack_padded_sequence(model(data["data"]), lengths.cpu(), True, False).data
    classes = nn.utils.rnn.pack_padded_sequence(data["classes"], lengths.cpu(), True, False).data
    loss = nn.functional.cross_entropy(logits.float(), classes.long(), reduction="sum")
    train_ctx.mark_as_loss(name="ce", loss=loss, inv_norm_factor=lengths.sum())
"""


@pytest.fixture
def recipe(tmp_path):
    folder = tmp_path / "recipe" / "setup"
    folder.mkdir(parents=True)
    for path, text in (("net", NET), ("parts", PARTS), ("steps", STEPS)):
        (folder / f"{path}.py").write_text(text)


def test_train_restart_forward(recipe, run, scores):
    run("engine_of_the_context.config", num_epochs=1)
    run("engine_of_the_context.config")
    found = scores("learning_rates")
    assert found[2][1]["dev_loss_ce"] < found[1][1]["dev_loss_ce"] < 1
    assert run("engine_of_the_context.config", task="forward") == 3
    rows = [line.split() for line in Path("counts.txt").read_text().splitlines()]
    assert sorted(tag for tag, _, _ in rows) == ["seq-0", "seq-1", "seq-2"]
    assert all(int(frames) == 2 * int(length) for _, length, frames in rows)


def test_data_sets_of_the_engine():
    toy = {"class": "Task12AXDataset", "num_seqs": 2}
    data = {"train": toy, "dev": None, "forward_data": {**toy, "num_seqs": 3}}
    training = EngineFace(None, data.get, is_training=True, epoch=3, device="cpu")
    assert (len(training.train_dataset), training.dev_dataset, training.forward_dataset) == (2, None, None)
    forwarding = EngineFace(None, data.get, is_training=False, epoch=3, device="cpu")
    assert (len(forwarding.forward_dataset), forwarding.train_dataset) == (3, None)
    with pytest.raises(
        AttributeError, match=r"run_ctx\.engine has no 'updater' in returnn-hydra; it has config, epoch"
    ):
        _ = training.updater


def test_vocabulary_of_a_data_set():
    toy = init_dataset({"class": "Task12AXDataset", "num_seqs": 2})
    face = OptionsFace(toy.source, {"class": "OggZipDataset", "targets": {"class": "Utf8ByteTargets"}})
    assert len(face.targets.labels) == 256
    with pytest.raises(AttributeError, match="OggZipDataset is not made of data sets"):
        _ = face.datasets
