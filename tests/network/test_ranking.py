"""What public setups use, by their ranking (`ranking.json`): supported, or refused with a reason; nothing is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkError, NetworkModel
from returnn_hydra.network import losses as losses_module
from returnn_hydra.network.activations import activate
from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.network.options import check_options
from returnn_hydra.network.registry import NOT_HERE, layer_class, layer_class_names

RANKING = json.loads((Path(__file__).parent / "ranking.json").read_text())
SPECS = {"data": TensorSpec(dim=4)}
REFUSED_UNITS = {"NativeLstm2StoreStates"}
"""In one public project; RETURNN itself has it no more."""


def test_layer_classes() -> None:
    """107 of the 111 classes; those that are missing are used by one or two projects each."""
    wanted = RANKING["layer_classes"]
    known = layer_class_names()
    missing = {name for name in wanted if name not in known}
    assert missing == {"twod_lstm", "reshape", "random_state_init", "tikhonov_regularization"}
    assert missing == set(NOT_HERE)
    assert len(wanted) - len(missing) == 107
    assert not {*wanted[:65]} & missing


def test_losses() -> None:
    """12 of 14; the others need RASR."""
    missing = {name for name in RANKING["losses"] if name not in losses_module._LOSSES}
    assert missing == {"sprint", "fast_bw"}
    assert missing <= set(losses_module.NOT_HERE)


@pytest.mark.parametrize("unit", RANKING["units"])
def test_units(unit: str) -> None:
    net = {"output": {"class": "rec", "from": "data", "unit": unit, "n_out": 3}}
    if unit in REFUSED_UNITS:
        with pytest.raises(NetworkError, match=f"unit '{unit}' is not supported"):
            NetworkModel(net, SPECS)
        return
    lengths = torch.tensor([5, 3])
    batch = Batch({"data": torch.randn(2, 5, 4)}, {"data": lengths}, ["a", "b"])
    result = NetworkModel(net, SPECS).layer_output(NetworkModel(net, SPECS)(batch))
    assert result.tensor.shape == (2, 5, 3) and bool(result.tensor.isfinite().all())


@pytest.mark.parametrize("name", RANKING["activations"])
def test_activations(name: str) -> None:
    from returnn_hydra.network.axis import feature_axis

    feature = feature_axis("f", 4)
    x = NamedTensor(torch.tensor([0.5, 1.0, 2.0, 3.0]), (feature,), feature=feature)
    found = activate(x, None if name == "None" else name, "here").raw
    assert found.shape == (4,) and bool(found.isfinite().all())


@pytest.mark.parametrize("option", RANKING["layer_options"])
def test_layer_options(option: str) -> None:
    """Every option of the ranking is one that the class, or every layer, knows."""
    name, _, key = option.partition(".")
    known = layer_class(name, "here")
    assert check_options({"class": name, key: 1}, known, "here") is None
    with pytest.raises(NetworkError, match="has no option"):
        check_options({"class": name, f"{key}_": 1}, known, "here")


def test_a_class_of_the_config_says_how() -> None:
    """TensorFlow layers that a config defines can't run; the error says what to write instead."""
    net: dict[str, Any] = {"output": {"class": "my_layer", "from": "data"}}
    with pytest.raises(NetworkError, match=r"output: layer class 'my_layer' .*@register_layer\('my_layer'\)"):
        NetworkModel(net, SPECS)
