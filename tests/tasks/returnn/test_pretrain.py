"""Networks that change between epochs: a pretraining, and `get_network(epoch)`, stopped anywhere and started again."""

import ast
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from returnn_hydra.config.errors import ConfigError
from returnn_hydra.engine.errors import Stopped

ROOT = Path(__file__).parents[3]
SETTINGS = """#!rnn.py
import os, signal
use_tensorflow = True
train = {"class": "Task12AXDataset", "num_seqs": 24}
dev = {"class": "Task12AXDataset", "num_seqs": 6, "fixed_random_seed": 1}
eval = dev
extern_data = {"data": {"dim": 9, "shape": (None, 9)}, "classes": {"dim": 2, "sparse": True}}
batch_size, max_seqs = 500, 6
num_epochs = 5
learning_rate = 0.01
optimizer = {"class": "adam"}
model = "net/model"
learning_rate_file = "net/learning_rates"
stop_at = config.int("stop_at", -1)
stop_signal = config.int("stop_signal", signal.SIGTERM)


def stopper(source, self, **_):
    if self.network.train_flag and int(self.network.global_train_step) == stop_at:
        os.kill(os.getpid(), stop_signal)
    return source(0)


def stack(depth, size=6):
    net = {"in": {"class": "eval", "from": "data", "eval": stopper, "trainable": False}}
    below = ["in"]
    for i in range(depth):
        lstm = {"class": "rec", "unit": "lstm", "n_out": size, "dropout": 0.1, "from": below}
        net["fw%i" % i], net["bw%i" % i] = {**lstm, "direction": 1}, {**lstm, "direction": -1}
        below = ["fw%i" % i, "bw%i" % i]
    net["output"] = {"class": "softmax", "from": below, "loss": "ce", "target": "classes"}
    return net
"""
PRETRAIN = """
network = stack(3)


def construction(idx, net_dict):
    if idx >= 2:
        return None
    net = stack(idx + 1, 4 + idx)
    net["#config"] = {"max_seqs": 4 + idx, "learning_rate": 0.02}
    return net


pretrain = {"construction_algo": construction, "repetitions": [1, 2, 1], "copy_param_mode": "subset"}
"""
GET_NETWORK = """
def get_network(epoch, **_):
    return {**stack(min((epoch + 1) // 2, 2)), "#config": {"max_seqs": 5 if epoch == 2 else 6}}
"""


def state(name):
    files = [Path(f"{name}.pt"), Path(f"{name}.opt.pt")]
    model, optimizer = (torch.load(file, weights_only=True) for file in files)
    moments = [part for entry in optimizer["optimizer"]["state"].values() for part in entry.values()]
    return model["model"], [part for part in moments if isinstance(part, torch.Tensor)]


def assert_same_bits(one, other):
    (model, moments), (model2, moments2) = state(one), state(other)
    assert model.keys() == model2.keys() and all(torch.equal(model[name], model2[name]) for name in model)
    assert len(moments) == len(moments2) and all(map(torch.equal, moments, moments2))


@pytest.mark.parametrize("text", [PRETRAIN, GET_NETWORK], ids=["pretrain", "get_network"])
def test_stopped_anywhere_ends_with_the_same_bits(run, scores, text):
    Path("my.config").write_text(SETTINGS + text)
    run("my.config", model="whole/model", learning_rate_file="whole/lr")
    for step in (2, 11):
        with pytest.raises(Stopped):
            run("my.config", stop_at=step)
    run("my.config")
    for epoch in (1, 3, 5):
        assert_same_bits(f"net/model.{epoch:03d}", f"whole/model.{epoch:03d}")
    assert scores() == scores("whole/lr")


def test_killed_inside_a_stage(run, scores):
    """SIGKILL leaves no time for anything: the run begins again at the last whole epoch, with the same bits."""
    Path("my.config").write_text(SETTINGS + PRETRAIN)
    run("my.config", model="whole/model", learning_rate_file="whole/lr")
    command = [sys.executable, str(ROOT / "scripts/rnn.py"), "my.config", "++stop_at", "13", "++stop_signal", "9"]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert sorted(scores()) == [1, 2]
    run("my.config")
    for epoch in (3, 5):
        assert_same_bits(f"net/model.{epoch:03d}", f"whole/model.{epoch:03d}")
    assert scores() == scores("whole/lr")


def test_stopped_between_two_stages(run, scores):
    Path("my.config").write_text(SETTINGS + PRETRAIN)
    run("my.config", model="whole/model", learning_rate_file="whole/lr")
    for epochs in (1, 2, 3):
        run("my.config", num_epochs=epochs)
    Path("net/model.003.pt").write_bytes(b"damaged")
    run("my.config")
    assert_same_bits("net/model.005", "whole/model.005")
    assert scores() == scores("whole/lr")


def test_layers_grow(run, scores):
    """Sizes as constructed; the parameters of a new stage begin where those of the stage before ended."""
    Path("my.config").write_text(SETTINGS + PRETRAIN)
    run("my.config")
    sizes = [
        torch.load(f"net/model.00{n}.pt", weights_only=True)["model"]["fw0/rec/W_re"].shape[0] for n in range(1, 6)
    ]
    assert sizes == [4, 5, 5, 6, 6]
    assert [rate for rate, _ in scores().values()] == [0.02, 0.02, 0.02, 0.01, 0.01]
    assert scores()[5][1]["dev_score"] < scores()[1][1]["dev_score"]


def test_other_tasks_take_the_network_of_the_epoch(run, scores):
    Path("my.config").write_text(SETTINGS + GET_NETWORK)
    run("my.config", num_epochs=4)
    for epoch in (1, 2, 4):
        run("my.config", task="eval", load_epoch=epoch, eval_output_file=f"eval{epoch}.py")
        found = ast.literal_eval(Path(f"eval{epoch}.py").read_text())
        assert found["dev"]["score"]["cost:output"] == pytest.approx(scores()[epoch][1]["dev_score"])
    assert run("my.config", task="forward", load_epoch=1, output_file="out.hdf") == 6


def test_starting_from_an_earlier_epoch(run, scores):
    """`start_epoch` at a change: the file is of the stage before."""
    Path("my.config").write_text(SETTINGS + GET_NETWORK)
    run("my.config", num_epochs=3)
    first = scores()[3]
    run("my.config", num_epochs=3, start_epoch=3)
    assert scores()[3] == first


def test_pretraining_rates(run, scores):
    """Constant while it grows and in the epoch behind; then the rule."""
    text = """
    network = stack(3)
    pretrain = "default"
    pretrain_learning_rate = 0.002
    learning_rate_control = "newbob"
    newbob_relative_error_threshold = -9.0
    """
    Path("my.config").write_text(SETTINGS + textwrap.dedent(text))
    run("my.config")
    assert [rate for rate, _ in scores().values()] == [0.002, 0.002, 0.002, 0.01, 0.005]
    run("my.config", use_learning_rate_control_always=True, model="b/m", learning_rate_file="b/lr", num_epochs=2)
    assert [rate for rate, _ in scores("b/lr").values()] == [0.01, 0.01]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "elsewhere"}, "model can't change"),
        ({"chunking": "10:5"}, "set chunking in the config, too"),
    ],
)
def test_wrong_settings(run, settings, message):
    text = f"def get_network(epoch):\n    return {{**stack(1), '#config': {settings!r}}}\n"
    Path("my.config").write_text(SETTINGS + text)
    with pytest.raises(ConfigError, match=message):
        run("my.config")
