"""Network dicts against the values of RETURNN's TensorFlow backend: layers, losses, errors, gradients, parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NAMES = sorted(json.loads((Path(__file__).parent.parent / "data/golden/tf_netdict.json").read_text())["cases"])


def close(actual: Any, expected: Any, what: str, tolerance: float = 1e-5) -> None:
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, what
    np.testing.assert_allclose(
        actual.astype("float64"), expected.astype("float64"), rtol=tolerance, atol=tolerance, err_msg=what
    )


@pytest.mark.parametrize("name", NAMES)
def test_case(name: str, make_case: Any, golden: Any) -> None:
    facts, arrays = golden
    fact = facts[name]
    case = make_case(name)
    parameters = case.model.tf_parameters()
    expected = {key: tuple(o["shape"]) for key, o in fact["params"].items() if key != "global_step"}
    assert {key: tuple(p.shape) for key, p in parameters.items()} == expected
    result = case.run(layers=[layer for layer in fact["layers"] if "/" not in layer])
    for layer, about in fact["layers"].items():
        value = result.outputs[layer].batch_major()
        assert list(value.raw.shape) == about["shape"], layer
        assert str(value.raw.dtype).removeprefix("torch.") == about["dtype"], layer
        assert (value.sparse_dim is not None) == about["sparse"], layer
        assert value.dim == about["dim"], layer
        for axis, dim in zip(value.axes, about["dims"], strict=True):
            if isinstance(dim, list):
                assert axis.lengths is not None and axis.lengths.tolist() == dim, layer
        close(value.zero_padding().raw.detach().numpy(), arrays[f"{name}/{layer}"], f"{name}/{layer}")
    assert set(result.losses) | set(result.errors) == set(fact["losses"])
    for layer, about in fact["losses"].items():
        if "loss" in about:
            close(result.losses[layer].sum.item(), about["loss"], f"{name}: loss of {layer}")
            assert 1.0 / result.losses[layer].count == pytest.approx(about["norm"])
        if "error" in about:
            close(result.errors[layer].sum.item(), about["error"], f"{name}: error of {layer}")
            assert 1.0 / result.errors[layer].count == pytest.approx(about["norm"])
    if "objective" in fact:
        objective = result.objective()
        close(objective.item(), fact["objective"], f"{name}: objective")
        gradients = {key: array for key, array in arrays.items() if key.startswith(f"{name}/grad/")}
        if gradients:
            objective.backward()
        for key, array in gradients.items():
            gradient = parameters[key.removeprefix(f"{name}/grad/")].grad
            close(gradient.numpy(), array, key)
