"""Windows folded back, and flattened images unflattened, against loops over one sequence at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkError, NetworkModel

LENGTHS = [7, 4, 1]


@pytest.fixture
def batch() -> Batch:
    data = torch.randn(3, 7, 2, generator=torch.Generator().manual_seed(2))
    return Batch({"data": data}, {"data": torch.tensor(LENGTHS)}, ["a", "b", "c"])


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize(("stride", "padding"), [(1, "same"), (2, "same"), (1, "valid")])
def test_fold(batch: Batch, mode: str, stride: int, padding: str) -> None:
    fold = {"class": "fold", "mode": mode, "in_spatial_dim": "T", "window_dim": "dim:3", "stride": stride}
    net = {
        "windows": {"class": "window", "from": "data", "window_size": 3, "stride": stride},
        "output": {**fold, "from": "windows", "padding": padding},
    }
    value = NetworkModel(net, {"data": TensorSpec(dim=2)})(batch).outputs["output"].batch_major()
    for found, length, x, n in zip(value.raw, value.time_axis.lengths, batch["data"].numpy(), LENGTHS, strict=True):
        padded = np.pad(x[:n], ((1, 1), (0, 0)))
        starts = range(0, n, stride)
        total, count = np.zeros((30, 2)), np.zeros((30, 1))
        for number, start in enumerate(starts):
            for w in range(3):
                total[number * stride + w] += padded[start + w] if start + w < len(padded) else 0
                count[number * stride + w] += 1
        expected = total / np.maximum(count, 1) if mode == "mean" else total
        size = len(starts) * stride if padding == "same" else len(starts) + 2
        first = 1 if padding == "same" else 0
        assert int(length) == size
        np.testing.assert_allclose(found[:size].numpy(), expected[first : first + size], rtol=1e-5, atol=1e-6)


def images(declare: bool = False) -> tuple[dict[str, Any], dict[str, TensorSpec]]:
    layer: dict[str, Any] = {"class": "unflatten_nd", "from": "data", "sizes": "data:sizes", "num_axes": 2}
    if declare:
        layer["declare_same_sizes_as"] = {1: "data:columns"}
    specs = {
        "data": TensorSpec(dim=2),
        "sizes": TensorSpec(dim=2, shape=(2,), dtype="int32"),
        "columns": TensorSpec(dim=3, sparse=True),
    }
    return {"output": layer}, specs


def test_unflatten() -> None:
    sizes = torch.tensor([[2, 3], [4, 1], [1, 1]], dtype=torch.int32)
    lengths = sizes.prod(1)
    data = torch.randn(3, 6, 2)
    columns = torch.zeros(3, 3, dtype=torch.int32)
    batch = Batch(
        {"data": data, "sizes": sizes, "columns": columns},
        {"data": lengths, "columns": sizes[:, 1].long()},
        ["a", "b", "c"],
    )
    for declare in (False, True):
        net, specs = images(declare)
        value = NetworkModel(net, specs)(batch).outputs["output"].batch_major()
        assert value.raw.shape == (3, 4, 3, 2)
        assert [axis.lengths.tolist() for axis in value.axes[1:3]] == [[2, 4, 1], [3, 1, 1]]
        for b, (height, width) in enumerate(sizes.tolist()):
            torch.testing.assert_close(value.raw[b, :height, :width], data[b, : height * width].view(height, width, 2))
    batch.tensors["sizes"] = torch.tensor([[3, 3], [4, 1], [1, 1]], dtype=torch.int32)
    with pytest.raises(NetworkError, match="need 9 frames"):
        NetworkModel(*images())(batch)


def test_errors() -> None:
    for options, message in (
        ({"mode": "max"}, "mode 'max' is not supported"),
        ({"mode": "sum", "padding": "full"}, "padding 'full' is not supported"),
        ({"mode": "sum", "padding": "valid", "stride": 2}, "nearest: class 'time_unchunking'"),
    ):
        net = {
            "windows": {"class": "window", "from": "data", "window_size": 3},
            "output": {"class": "fold", "from": "windows", "in_spatial_dim": "T", "window_dim": "dim:3", **options},
        }
        with pytest.raises(NetworkError, match=message):
            NetworkModel(net, {"data": TensorSpec(dim=2)})
