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
