"""Layers of few public networks against loops in numpy; those that are refused say what to use."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkError, NetworkModel
from returnn_hydra.network.losses import NOT_HERE as LOSSES_NOT_HERE
from returnn_hydra.network.registry import NOT_HERE, layer_class_names

LENGTHS = [9, 6, 1]
SPECS = {"data": TensorSpec(dim=3), "classes": TensorSpec(dim=4, sparse=True, same_length_as="data")}


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    data = torch.randn(3, 9, 3, generator=generator)
    classes = torch.randint(0, 4, (3, 9), generator=generator, dtype=torch.int32)
    lengths = torch.tensor(LENGTHS)
    return Batch({"data": data, "classes": classes}, {"data": lengths, "classes": lengths}, ["a", "b", "c"])


def run(batch: Batch, layer: dict[str, Any], **others: dict[str, Any]) -> list[np.ndarray]:
    """The layer's output of every sequence, without padding."""
    model = NetworkModel({**others, "output": {"from": "data", **layer}}, SPECS).eval()
    with torch.no_grad():
        value = model(batch).outputs["output"].batch_major()
    time = value.time_axis
    if time is None:
        return list(value.raw.numpy())
    return [row[: int(length)] for row, length in zip(value.raw.numpy(), time.lengths, strict=True)]


def test_batch_softmax(batch: Batch) -> None:
    for found, x, n in zip(run(batch, {"class": "batch_softmax"}), batch["data"].numpy(), LENGTHS, strict=True):
        np.testing.assert_allclose(found, np.exp(x[:n]) / np.exp(x[:n]).sum(), rtol=1e-5)


@pytest.mark.parametrize("symbol", [2, -1])
def test_remove(batch: Batch, symbol: int) -> None:
    found = run(batch, {"class": "remove", "from": "data:classes", "symbol": symbol})
    for row, labels, n in zip(found, batch["classes"].tolist(), LENGTHS, strict=True):
        assert row.tolist() == [label for label in labels[:n] if label != symbol % 4]


@pytest.mark.parametrize("inner", [None, 3])
def test_gauss_window_attention(batch: Batch, inner: int | None) -> None:
    """Frames before the first and behind the last one count as these."""
    std, size = 0.8, 5
    mean = {"class": "reduce", "from": "data", "mode": "mean", "axis": "T"}
    place = {"class": "slice", "from": "mean", "axis": "F", "slice_end": 1}
    options = {"inner_size": inner} if inner else {}
    layer = {"class": "gauss_window_attention", "from": "place", "base": "data", "window_size": size, "std": std}
    found = run(batch, {**layer, **options}, mean=mean, place=place)
    for value, x, n in zip(found, batch["data"].numpy(), LENGTHS, strict=True):
        centre = x[:n, 0].mean()
        for number, row in enumerate(value if inner else [value]):
            shifted = centre + (number * 0.5 - inner / 2 if inner else 0.0)
            expected = np.zeros(3)
            for frame in range(round(float(centre)) - 2, round(float(centre)) + 3):
                weight = math.exp(-((shifted - frame) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))
                expected += weight * x[min(max(frame, 0), n - 1)]
            np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 2, -1, -2])
def test_stack_at_a_place(batch: Batch, axis: int) -> None:
    """Negative places count from the end of the result."""
    twice = {"class": "eval", "from": "data", "eval": "2 * source(0)"}
    model = NetworkModel({"b": twice, "output": {"class": "stack", "from": ["data", "b"], "axis": axis}}, SPECS)
    expected = torch.stack([batch["data"], 2 * batch["data"]], axis)
    torch.testing.assert_close(model(batch).outputs["output"].raw, expected)


def test_istft_inverts_stft() -> None:
    """Where frames overlap fully, the signal comes back."""
    samples = torch.randn(2, 40, 1, generator=torch.Generator().manual_seed(1))
    batch = Batch({"data": samples}, {"data": torch.tensor([40, 24])}, ["a", "b"])
    net = {
        "spectra": {"class": "stft", "from": "data", "frame_shift": 2, "frame_size": 8},
        "output": {"class": "istft", "from": "spectra", "frame_shift": 2, "frame_size": 8},
    }
    model = NetworkModel(net, {"data": TensorSpec(dim=1)})
    value = model(batch).outputs["output"].batch_major()
    assert value.time_axis.lengths.tolist() == [40, 24]
    torch.testing.assert_close(value.raw[0, 6:-6], samples[0, 6:-6], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(value.raw[1, 6:18], samples[1, 6:18], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(NOT_HERE))
def test_refused_classes_say_what_to_use(name: str) -> None:
    assert name not in layer_class_names()
    with pytest.raises(NetworkError, match=f"output: layer class '{name}' is not supported: "):
        NetworkModel({"output": {"class": name, "from": "data"}}, SPECS)


@pytest.mark.parametrize("loss", sorted(LOSSES_NOT_HERE))
def test_refused_losses_say_what_to_use(loss: str, batch: Batch) -> None:
    """A network with such a loss can be made and forwarded all the same."""
    net = {"output": {"class": "softmax", "from": "data", "loss": loss, "target": "classes"}}
    model = NetworkModel(net, SPECS)
    assert "output" in model(batch, with_losses=False).outputs
    with pytest.raises(NetworkError, match=f"output .* loss '{loss}' is not supported: "):
        model(batch)
