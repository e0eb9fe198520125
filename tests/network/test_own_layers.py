"""The documentation's example of a layer class of one's own runs as it is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkModel
from returnn_hydra.network.registry import _CLASSES

DOCS = Path(__file__).parents[2] / "docs" / "returnn.md"


def test_example() -> None:
    text = DOCS.read_text().split("## A layer class of your own")[1].split("```python\n")[1].split("```")[0]
    namespace: dict[str, Any] = {}
    try:
        exec(compile(text, str(DOCS), "exec"), namespace)
        model = NetworkModel(namespace["network"], {"data": TensorSpec(dim=3)})
        assert {name: tuple(p.shape) for name, p in model.tf_parameters().items()} == {"output/factor": (3,)}
        data = torch.randn(2, 5, 3)
        result = model(Batch({"data": data}, {"data": torch.tensor([5, 4])}, ["a", "b"]))
        torch.testing.assert_close(result.outputs["output"].raw, 0.5 * data)
    finally:
        _CLASSES.pop("scale_features", None)
