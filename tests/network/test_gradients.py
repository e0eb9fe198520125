"""Gradients of layers by finite differences, of the input and of all parameters, in double precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkModel

LENGTHS = torch.tensor([4, 2])
UNIT = {
    "cell": {"class": "rnn_cell", "unit": "LSTMBlock", "n_out": 2, "from": ["data:source", "prev:output"]},
    "output": {"class": "linear", "activation": "tanh", "n_out": 2, "from": "cell"},
}
CAUSAL = {
    "att": {
        "class": "self_attention",
        "num_heads": 1,
        "total_key_dim": 2,
        "n_out": 2,
        "from": ["data:source", "prev:y"],
    },
    "y": {"class": "linear", "activation": "tanh", "n_out": 2, "from": "att"},
    "output": {"class": "copy", "from": "y"},
}
LAYERS: dict[str, dict[str, Any]] = {
    "linear": {"class": "linear", "activation": "tanh", "n_out": 2},
    "softmax": {"class": "softmax", "n_out": 3},
    "gating": {"class": "gating", "activation": "tanh"},
    "layer_norm": {"class": "layer_norm"},
    "batch_norm": {"class": "batch_norm", "masked_time": True},
    "conv": {"class": "conv", "filter_size": (3,), "padding": "same", "n_out": 2, "with_bias": True},
    "transposed_conv": {"class": "transposed_conv", "filter_size": (3,), "strides": (2,), "n_out": 2},
    "pool": {"class": "pool", "pool_size": (2,), "mode": "avg", "padding": "same"},
    "window": {"class": "window", "window_size": 3},
    "softmax_over_spatial": {"class": "softmax_over_spatial"},
    "reduce": {"class": "reduce", "mode": "mean", "axis": "T"},
    "cumsum": {"class": "cumsum", "axis": "T"},
    "self_attention": {"class": "self_attention", "num_heads": 2, "total_key_dim": 4, "n_out": 4},
    "lstm": {"class": "rec", "unit": "nativelstm2", "n_out": 2, "direction": -1},
    "gru": {"class": "rec", "unit": "gru", "n_out": 2},
    "lstmp": {"class": "rec", "unit": "lstmp", "n_out": 2},
    "loop": {"class": "rec", "unit": UNIT},
    "loop with attention": {"class": "rec", "unit": CAUSAL},
}
LOSSES: dict[str, dict[str, Any]] = {
    "ce": {"class": "softmax", "loss": "ce", "loss_opts": {"label_smoothing": 0.1}},
    "focal": {"class": "softmax", "loss": "ce", "loss_opts": {"focal_loss_factor": 2.0}},
    "ctc": {"class": "softmax", "loss": "ctc", "target": "labels"},
    "L2": {"class": "linear", "n_out": 2, "activation": "sigmoid", "L2": 0.1, "loss": "as_is"},
}


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def check(layer: dict[str, Any], value: Any) -> None:
    torch.manual_seed(3)
    specs = {
        "data": TensorSpec(dim=4),
        "classes": TensorSpec(dim=3, sparse=True, same_length_as="data", available_for_inference=False),
        "labels": TensorSpec(dim=2, sparse=True, available_for_inference=False),
    }
    model = NetworkModel({"output": {"from": "data", "target": "classes", **layer}}, specs)
    data = torch.randn(2, 4, 4, requires_grad=True)
    classes, labels = torch.tensor([[0, 2, 1, 1], [2, 0, 0, 0]]), torch.tensor([[0, 1], [1, 0]])
    lengths = {"data": LENGTHS, "classes": LENGTHS, "labels": torch.tensor([2, 1])}

    def function(*_: torch.Tensor) -> Any:
        batch = Batch({"data": data, "classes": classes, "labels": labels}, lengths, ["a", "b"])
        return value(model(batch))

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert torch.autograd.gradcheck(function, (data, *parameters), fast_mode=True)


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str) -> None:
    check(LAYERS[name], lambda result: result.outputs["output"].zero_padding().raw)


@pytest.mark.parametrize("name", LOSSES)
def test_loss(name: str) -> None:
    check(LOSSES[name], lambda result: result.objective())
