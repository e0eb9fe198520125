"""`torch_compile`: the layers of a network dict and the loops of its rec layers under torch.compile."""

from pathlib import Path

import pytest
import torch

CONFIG = """#!rnn.py
use_tensorflow = True
train = {"class": "Task12AXDataset", "num_seqs": 2, "fixed_random_seed": 1}
dev = {"class": "Task12AXDataset", "num_seqs": 2, "fixed_random_seed": 2}
extern_data = {"data": {"dim": 9, "shape": (None, 9)}, "classes": {"dim": 2, "sparse": True}}
batch_size, max_seqs = 500, 2
num_epochs = 1
learning_rate = 0.01
optimizer = {"class": "adam"}
network = {
    "short": {"class": "slice", "from": "data", "axis": "T", "slice_end": 3},
    "loop": {"class": "rec", "from": "short", "n_out": 3, "unit": {
        "cell": {"class": "rnn_cell", "unit": "LSTMBlock", "n_out": 4, "from": ["data:source", "prev:output"]},
        "output": {"class": "linear", "activation": "tanh", "n_out": 3, "from": "cell"}}},
    "last": {"class": "reduce", "from": "loop", "mode": "mean", "axis": "T"},
    "probs": {"class": "linear", "from": ["data", "last"], "activation": "softmax", "n_out": 2},
    "output": {"class": "copy", "from": "probs", "loss": "ce", "target": "classes"},
}
"""


@pytest.mark.slow
def test_the_same_numbers(run, scores):
    Path("my.config").write_text(CONFIG)
    run("my.config", model="a/model", learning_rate_file="a/lr")
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    run("my.config", model="b/model", learning_rate_file="b/lr", torch_compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    plain, compiled = (torch.load(f"{n}/model.001.pt", weights_only=True)["model"] for n in "ab")
    assert plain.keys() == compiled.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5)
    assert scores("b/lr")[1][1] == pytest.approx(scores("a/lr")[1][1], rel=1e-4)
