"""Shared fixtures: the cases whose values RETURNN's TensorFlow backend computed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkModel

GOLDEN = Path(__file__).parent.parent / "data" / "golden"


@pytest.fixture(scope="session")
def cases() -> ModuleType:
    """The case list: networks, streams, lengths, and the functions that fill inputs and parameters."""
    spec = importlib.util.spec_from_file_location("tf_cases", GOLDEN / "tf_cases.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """RETURNN's values: by case, what the layers are; by `CASE/LAYER`, the arrays."""
    facts = json.loads((GOLDEN / "tf_netdict.json").read_text())["cases"]
    return facts, dict(np.load(GOLDEN / "tf_netdict.npz"))


def specs_of(extern: dict[str, dict[str, Any]]) -> dict[str, TensorSpec]:
    """Streams with the same "time" share their lengths."""
    owners: dict[str, str] = {}
    result = {}
    for key, options in extern.items():
        time = options.get("time")
        owner = owners.setdefault(time, key) if time else key
        result[key] = TensorSpec(
            dim=options["dim"],
            shape=tuple(options["shape"]),
            sparse=options.get("sparse", False),
            available_for_inference=options.get("available_for_inference", True),
            same_length_as=owner if owner != key else None,
        )
    return result


class Case:
    """One case, built: a model with the case's parameters, and its batch."""

    def __init__(self, cases: ModuleType, name: str, **options: Any) -> None:
        self.case = cases.CASES[name]
        net = strip_dropout(self.case["net"]) if self.case.get("nodropout") else self.case["net"]
        self.model = NetworkModel(net, specs_of(self.case["extern"]), **options)
        self.model.set_parameters(cases.fill)
        self.model.train(bool(self.case.get("train")))
        inputs = cases.make_inputs(self.case["extern"], self.case["lens"])
        self.batch = Batch(
            {key: torch.from_numpy(values) for key, (values, _) in inputs.items()},
            {key: torch.from_numpy(lengths.astype("int64")) for key, (_, lengths) in inputs.items()},
            [f"seq-{i}" for i in range(len(next(iter(inputs.values()))[1]))],
        )

    def run(self, **options: Any) -> Any:
        search = bool(self.case.get("search"))
        return self.model(self.batch, search=search, **options)


def strip_dropout(net: Any) -> Any:
    if isinstance(net, dict):
        return {k: strip_dropout(v) for k, v in net.items() if k not in ("dropout", "attention_dropout")}
    return net


@pytest.fixture
def make_case(cases: ModuleType) -> Any:
    def make(name: str, **options: Any) -> Case:
        return Case(cases, name, **options)

    return make
