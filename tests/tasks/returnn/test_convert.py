"""A converted config trains to the same numbers."""

import json
from pathlib import Path

import pytest
import yaml

from returnn_hydra.tasks.returnn.convert import convert, is_plain

CONFIGS = Path(__file__).parent / "configs"


@pytest.mark.parametrize("name", ["plain_torch", "rf_modules"])
def test_same_numbers(command, run, scores, name):
    small = {"num_seqs": 40, "num_epochs": 2, "batch_size": 400}
    run(f"{name}.config", **small)
    expected = scores()
    overrides = [(key, str(value)) for key, value in small.items()]
    file, _ = convert([str(CONFIGS / f"{name}.config")], overrides, Path("converted"), name)
    assert yaml.safe_load(file.read_text())["returnn"]["batch_size"] == 400
    new = ["returnn.model=new/model", "returnn.learning_rate_file=new/lr"]
    assert command("--config-dir=converted", f"experiment={name}", *new) == 0
    assert scores("new/lr") == expected
    assert command("--config-dir=converted", f"experiment={name}", "num_epochs=3", *new) == 0
    assert sorted(scores("new/lr")) == [1, 2, 3]


def test_what_yaml_gives_back():
    assert is_plain({"a": [1, 2.5, None, True, "x"]})
    assert not any(map(is_plain, [(1, 2), {1: 2}, {"a": {(1, 2): 3}}, len, "${oc.env:HOME}"]))


MODEL = """
import torch
import returnn.frontend as rf


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.out = torch.nn.Linear(9, 2)

    def forward(self, x):
        return self.out(x)


def get_model(**_):
    return Model()


def train_step(*, model, extern_data, **_):
    data, classes = extern_data["data"], extern_data["classes"]
    logits = model(data.raw_tensor)
    loss = torch.nn.functional.cross_entropy(logits.mT, classes.raw_tensor.long(), reduction="none")
    rf.get_run_ctx().mark_as_loss(rf.convert_to_tensor(loss, dims=data.dims[:2]), "ce")


def double(tensors, **_):
    tensors.data["data"].raw_tensor = tensors.data["data"].raw_tensor * factor
    return tensors


factor = 2
"""
OPTIONS = """
dev = {"class": "Task12AXDataset", "num_seqs": 5, "fixed_random_seed": 1}
extern_data = {"data": {"dim": 9}, "classes": {"dim": 2, "sparse": True}}
batch_size = 400
num_epochs = 2
learning_rates = [0.01, 0.02]
optimizer = {"class": "adamw", "epsilon": 1e-8}
model = "net/model"
learning_rate_file = "net/learning_rates"
"""
INNER = "{'class': 'Task12AXDataset', 'num_seqs': 12}"
TRAIN = {
    "rates": INNER,
    "postprocessing": f"{{'class': 'PostprocessingDataset', 'dataset': {INNER}, 'map_seq': double}}",
    "multi_proc": f"{{'class': 'MultiProcDataset', 'dataset': {INNER}, 'num_workers': 1, 'buffer_size': 3}}",
    "combined": f"{{'class': 'CombinedDataset', 'datasets': {{'x': {INNER}, 'y': {INNER}}}, 'data_map':"
    " {('x', 'data'): 'data', ('x', 'classes'): 'classes', ('y', 'data'): 'data', ('y', 'classes'): 'classes'},"
    " 'seq_ordering': 'default'}",
    "function": f"lambda **_: {INNER}",
}
NETWORK = {
    "use_tensorflow": True,
    "network": {"output": {"class": "softmax", "loss": "ce", "from": "data"}},
    "train": {"class": "Task12AXDataset", "num_seqs": 12},
    "dev": {"class": "Task12AXDataset", "num_seqs": 5, "fixed_random_seed": 1},
    "extern_data": {"data": {"dim": 9}, "classes": {"dim": 2, "sparse": True}},
    "batch_size": 400,
    "num_epochs": 2,
    "learning_rate": 0.01,
    "optimizer": {"class": "adam"},
    "model": "net/model",
    "learning_rate_file": "net/learning_rates",
}


def trains_to_the_same_numbers(command, run, scores, file):
    run(file)
    expected = scores()
    convert([file], [], Path("converted"), "mine")
    new = ["returnn.model=new/model", "returnn.learning_rate_file=new/lr"]
    assert command("--config-dir=converted", "experiment=mine", *new) == 0
    assert sorted(expected) == [1, 2] and scores("new/lr") == expected
    return expected


@pytest.mark.parametrize("name", TRAIN)
def test_data_sets(command, run, scores, name):
    Path("my.config").write_text("#!rnn.py\n" + MODEL + OPTIONS + f"train = {TRAIN[name]}\n")
    expected = trains_to_the_same_numbers(command, run, scores, "my.config")
    assert [rate for rate, _ in expected.values()] == [0.01, 0.02]


MINI_RETURNN = """#!rnn.py
import functools
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import networks_of_mine.small as network

get_model = functools.partial(network.Model, **{"config": {"hidden": 7, "from_epoch": 2}})
train_step = network.train_step
forward_init_hook = functools.partial(network.forward_init_hook, **{"config": {"file": "out.txt"}})
from networks_of_mine.small import forward_step, forward_finish_hook
"""
NETWORK_OF_MINE = """
from dataclasses import dataclass

import torch
from returnn.torch.context import get_run_ctx


@dataclass
class Config:
    hidden: int
    from_epoch: int


class Model(torch.nn.Module):
    def __init__(self, config, **kwargs):
        super().__init__()
        self.cfg = Config(**config)
        self.hidden, self.out = torch.nn.Linear(9, self.cfg.hidden), torch.nn.Linear(self.cfg.hidden, 2)

    def forward(self, x):
        x = torch.relu(self.hidden(x))
        if self.training and get_run_ctx().epoch >= self.cfg.from_epoch:
            x = torch.nn.functional.dropout(x, 0.2)
        return torch.log_softmax(self.out(x), dim=-1)


def train_step(*, model, data, run_ctx, **kwargs):
    lengths, order = torch.sort(data["data:size1"], descending=True)
    log_probs = model(data["data"][order])
    picked = torch.nn.utils.rnn.pack_padded_sequence(log_probs, lengths, batch_first=True).data
    classes = torch.nn.utils.rnn.pack_padded_sequence(data["classes"][order], lengths, batch_first=True).data
    loss = torch.nn.functional.nll_loss(picked, classes.long(), reduction="sum")
    run_ctx.mark_as_loss(name="ce", loss=loss, inv_norm_factor=lengths.sum())
    if run_ctx.epoch >= model.cfg.from_epoch:
        run_ctx.mark_as_loss(name="norm", loss=model.out.weight.square().sum(), scale=0.01)


def forward_init_hook(run_ctx, config, **kwargs):
    run_ctx.file = open(config["file"], "wt")


def forward_step(*, model, data, run_ctx, **kwargs):
    for tag, row in zip(data["seq_tag"], model(data["data"])):
        run_ctx.file.write(f"{tag} {float(row[0].exp().sum()):.5f}\\n")


def forward_finish_hook(run_ctx, **kwargs):
    run_ctx.file.close()
"""


def test_mini_returnn_with_networks_beside_the_config(command, run, scores, tmp_path):
    place = tmp_path / "setup"
    (place / "networks_of_mine").mkdir(parents=True)
    (place / "networks_of_mine" / "__init__.py").write_text("")
    (place / "networks_of_mine" / "small.py").write_text(NETWORK_OF_MINE)
    (place / "my.config").write_text(MINI_RETURNN + OPTIONS + f"train = {TRAIN['rates']}\nforward_data = dev\n")
    found = trains_to_the_same_numbers(command, run, scores, "setup/my.config")
    assert [{key.split("_")[-1] for key in errors} for _, errors in found.values()] == [{"ce"}, {"ce", "norm"}]
    run("setup/my.config", task="forward")
    texts = [Path("out.txt").read_text()]
    Path("out.txt").unlink()
    assert command("--config-dir=converted", "experiment=mine", "task=forward", "returnn.model=new/model") == 0
    assert [*texts, texts[0]] == [texts[0], Path("out.txt").read_text()]
    assert len(texts[0].splitlines()) == 5


def test_package_with_relative_imports(command, run, scores, tmp_path):
    package = tmp_path / "setup_of_mine"
    (package / "nets").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "nets" / "__init__.py").write_text("from .linear import get_model, train_step\n")
    (package / "nets" / "linear.py").write_text(MODEL)
    (package / "config.py").write_text(
        "from .nets import get_model, train_step\n" + OPTIONS + f"train = {TRAIN['rates']}\n"
    )
    trains_to_the_same_numbers(command, run, scores, "setup_of_mine/config.py")


@pytest.mark.parametrize("syntax", ["python", "json", "lines"])
def test_network_dict(command, run, scores, syntax):
    if syntax == "python":
        text = "#!rnn.py\n" + "".join(f"{key} = {value!r}\n" for key, value in NETWORK.items())
    elif syntax == "json":
        text = "{ // settings\n" + json.dumps(NETWORK)[1:]
    else:
        text = "".join(
            f"{key} {value if isinstance(value, str) else json.dumps(value)}\n" for key, value in NETWORK.items()
        )
    Path("my.config").write_text(text)
    trains_to_the_same_numbers(command, run, scores, "my.config")
