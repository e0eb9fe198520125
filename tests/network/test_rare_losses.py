"""Losses of few public networks, and a layer that changes gradients, against formulas written out again.

`generic_ce`, `bleu` and `sse_sigmoid` were also compared with RETURNN's TensorFlow backend: values,
errors and gradients within 1e-5.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkModel
from returnn_hydra.network.bleu import sentence_bleu

SPECS = {"data": TensorSpec(dim=3), "classes": TensorSpec(dim=4, sparse=True, same_length_as="data")}
LENGTHS = torch.tensor([5, 3])


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(4)
    data = torch.randn(2, 5, 3, generator=generator)
    classes = torch.randint(0, 4, (2, 5), generator=generator, dtype=torch.int32)
    return Batch({"data": data, "classes": classes}, {"data": LENGTHS, "classes": LENGTHS}, ["a", "b"])


def frames(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    real = torch.arange(5) < LENGTHS[:, None]
    return batch["data"][real], batch["classes"][real].long()


@pytest.mark.parametrize("activation", ["exp", "sigmoid"])
def test_generic_ce(batch: Batch, activation: str) -> None:
    """With exp it is a softmax's cross entropy; with a sigmoid, the same signal times the slope of log y."""
    layer = {"class": "linear", "from": "data", "n_out": 4, "activation": activation, "loss": "generic_ce"}
    model = NetworkModel({"output": {**layer, "target": "classes"}}, SPECS)
    loss = model(batch).losses["output"]
    loss.sum.backward()
    x, labels = frames(batch)
    z = x @ model.parameter("output/W").detach() + model.parameter("output/b").detach()
    y = torch.exp(z) if activation == "exp" else torch.sigmoid(z)
    p = y / y.sum(1, keepdim=True)
    slope = torch.ones_like(z) if activation == "exp" else 1.0 - torch.sigmoid(z)
    signal = slope * (p - torch.eye(4)[labels])
    assert loss.sum.item() == pytest.approx(-sum(math.log(row[c]) for row, c in zip(p, labels, strict=True)), rel=1e-5)
    torch.testing.assert_close(model.parameter("output/W").grad, x.t() @ signal, rtol=1e-4, atol=1e-5)


def test_bleu_by_hand() -> None:
    """1 to 4 of the n-grams match: 4/5, 2/4, 1/3, and none of 2, which counts as 1/(2*2); and the brevity penalty."""
    assert sentence_bleu([1, 2, 3, 9, 5], [1, 2, 3, 4, 5]) == pytest.approx((4 / 5 * 2 / 4 * 1 / 3 * 1 / 4) ** 0.25)
    assert sentence_bleu([1, 2, 3, 4], [1, 2, 3, 4, 5]) == pytest.approx(math.exp(1 - 5 / 4))
    assert sentence_bleu([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]) == 1.0
    assert sentence_bleu([], [1]) == 0.0


def test_bleu_is_an_error_only(batch: Batch) -> None:
    net = {"output": {"class": "copy", "from": "data:classes", "loss": "bleu", "target": "classes"}}
    result = NetworkModel(net, SPECS)(batch)
    assert not result.losses
    assert result.errors["output"].sum.item() == pytest.approx(-2.0)  # both sequences are their own reference


def test_synthetic_gradient(batch: Batch) -> None:
    """Below, the predicted gradient arrives; the prediction gets 2 (prediction - true gradient) / number of values."""
    net: dict[str, Any] = {
        "below": {"class": "linear", "from": "data", "n_out": 4, "activation": None},
        "predicted": {"class": "linear", "from": "data", "n_out": 4, "activation": None},
        "cut": {"class": "synthetic_gradient", "from": "below", "gradient": "predicted", "meta_loss_scale": 3.0},
        "output": {"class": "eval", "from": "cut", "eval": "source(0) ** 2", "loss": "as_is"},
    }
    model = NetworkModel(net, SPECS)
    model(batch).objective().backward()
    weights = {name: model.parameter(f"{name}/W") for name in ("below", "predicted")}
    x = batch["data"]
    real = (torch.arange(5) < LENGTHS[:, None])[..., None]
    predicted = x @ weights["predicted"].detach()
    true = 2.0 * (x @ weights["below"].detach()) * real
    torch.testing.assert_close(weights["below"].grad, torch.einsum("btf,bto->fo", x, predicted))
    signal = 3.0 * 2.0 * (predicted - true) / predicted.numel()
    torch.testing.assert_close(weights["predicted"].grad, torch.einsum("btf,bto->fo", x, signal))


def test_gaussian_label_smoothing(batch: Batch) -> None:
    """The gradient is softmax - target, as TensorFlow's, though the targets do not sum to 1."""
    options = {"label_smoothing": 0.1, "label_smoothing_gaussian": True}
    net = {"output": {"class": "softmax", "from": "data", "loss": "ce", "target": "classes", "loss_opts": options}}
    model = NetworkModel(net, SPECS)
    model(batch).objective().backward()
    x, labels = frames(batch)
    p = torch.softmax(x @ model.parameter("output/W").detach() + model.parameter("output/b").detach(), -1)
    target = torch.distributions.Normal(labels[:, None].float(), 0.9).log_prob(torch.arange(4.0)).exp()
    torch.testing.assert_close(model.parameter("output/W").grad, x.t() @ (p - target), rtol=1e-4, atol=1e-5)
