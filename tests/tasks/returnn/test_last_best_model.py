"""`use_last_best_model`: which epoch's parameters an epoch begins with."""

from pathlib import Path

import pytest
import torch

from returnn_hydra.config.errors import ConfigError
from returnn_hydra.tasks.returnn.last_best_model import last_best_epoch

SCORES = {1: 0.9, 2: 0.5, 3: 0.7, 4: None, 5: 0.6}


@pytest.mark.parametrize(
    ("epoch", "options", "expected"),
    [
        (6, {}, 2),
        (3, {}, None),  # the newest is the best
        (6, {"min_score_dist": 0.2}, None),
        (4, {"min_score_dist": 0.1}, 2),
        (6, {"only_last_n": 2}, None),
        (6, {"only_last_n": 3}, 2),
        (6, {"only_last_epochs": 3}, None),
        (4, {"first_epoch": 3}, None),
        (6, {"filter_score": 0.4}, None),
        (5, {"modulo": 2}, None),
        (6, {"modulo": 2}, 2),
        (6, {"modulo": 5, "filter_score": 0.55}, 2),  # the newest is so bad that it counts anyway
    ],
)
def test_rule(epoch, options, expected):
    assert last_best_epoch(epoch, {k: v for k, v in SCORES.items() if k < epoch}, options) == expected


CONFIG = """#!rnn.py
task = "train"
use_tensorflow = True
train = {"class": "Task12AXDataset", "num_seqs": 20, "fixed_random_seed": 1}
dev = {"class": "Task12AXDataset", "num_seqs": 5, "fixed_random_seed": 2}
num_inputs, num_outputs = 9, 2
batch_size, max_seqs = 500, 5
network = {"output": {"class": "softmax", "loss": "ce", "from": "data"}}
optimizer = {"class": "adam"}
learning_rates = [0.01, 0.01, 30.0, 0.01]
num_epochs = 4
model = "net/model"
learning_rate_file = "net/learning_rates"
"""


def test_a_bad_epoch_is_left_behind(run, scores):
    Path("my.config").write_text(CONFIG + "use_last_best_model = {'only_last_n': 3}\n")
    run("my.config", num_epochs=3)
    run("my.config")
    found = {epoch: values["dev_score"] for epoch, (_, values) in scores().items()}
    assert found[4] < found[2] < found[3]
    second, fourth = (torch.load(f"net/model.00{epoch}.pt", weights_only=True)["model"] for epoch in (2, 4))
    steps = 4 * 0.01  # Adam's first steps have about the size of the learning rate
    assert all((fourth[name] - second[name]).abs().max() < 2 * steps for name in second)


def test_unknown_option(run):
    Path("my.config").write_text(CONFIG + "use_last_best_model = {'only_last': 3}\n")
    with pytest.raises(ConfigError, match="unknown option 'only_last'; did you mean 'only_last_n'"):
        run("my.config")
