"""Layers in a loop: edit distances so far, what each label leads to at best, and frames of tensors from outside."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkError, NetworkModel

CLASSES = 3
SPECS = {
    "data": TensorSpec(dim=CLASSES, sparse=True),
    "classes": TensorSpec(dim=CLASSES, sparse=True, available_for_inference=False),
}
UNIT = {
    "output": {"class": "copy", "from": "data:source"},
    "table": {"class": "edit_distance_table", "from": "output", "target": "layer:base:data:classes",
              "is_output_layer": True},
    "best": {"class": "optimal_completions", "from": "prev:table", "target": "layer:base:data:classes",
             "is_output_layer": True},
}  # fmt: skip


def distance(a: list[int], b: list[int]) -> int:
    """By the definition, recursively."""
    if not a or not b:
        return len(a) + len(b)
    return min(distance(a[:-1], b) + 1, distance(a, b[:-1]) + 1, distance(a[:-1], b[:-1]) + (a[-1] != b[-1]))


@pytest.fixture
def batch() -> Batch:
    data = torch.tensor([[0, 1, 1, 2], [2, 2, 0, 1], [1, 0, 0, 0]], dtype=torch.int32)
    classes = torch.tensor([[0, 1, 2], [2, 1, 0], [0, 0, 0]], dtype=torch.int32)
    lengths = {"data": torch.tensor([4, 3, 1]), "classes": torch.tensor([3, 2, 1])}
    return Batch({"data": data, "classes": classes}, lengths, ["a", "b", "c"])


def outputs(batch: Batch, **changes: dict[str, Any]) -> dict[str, torch.Tensor]:
    unit = {name: {**options, **changes.get(name, {})} for name, options in UNIT.items()}
    model = NetworkModel({"output": {"class": "rec", "from": "data", "unit": unit}}, SPECS).eval()
    found = model(batch).outputs
    return {name: found[f"output/{name}"].batch_major().raw for name in ("table", "best")}


@pytest.mark.parametrize("blank", [None, 2])
def test_tables_and_completions(batch: Batch, blank: int | None) -> None:
    options = {} if blank is None else {"blank_idx": blank}
    found = outputs(batch, table=options, best=options)
    pairs = zip(
        batch["data"].tolist(), batch.lengths["data"], batch["classes"].tolist(), batch.lengths["classes"], strict=True
    )
    for b, (row, frames, target, size) in enumerate(pairs):
        for t in range(int(frames)):
            said = [label for label in row[: t + 1] if label != blank]
            for s in range(int(size) + 1):
                assert found["table"][b, t, s] == distance(said, target[:s])
            before = [label for label in row[:t] if label != blank]
            for label in range(CLASSES):
                start = before if label == blank else [*before, label]
                rest = [list(c) for n in range(int(size) + 1) for c in itertools.product(range(CLASSES), repeat=n)]
                assert found["best"][b, t, label] == min(distance(start + c, target[: int(size)]) for c in rest)


def test_ended_hypotheses_keep_their_row(batch: Batch) -> None:
    """In a search with an end, by the best hypothesis of a beam of one."""
    scores = torch.tensor([[[0.0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1]]]).expand(3, -1, -1).clone()
    unit = {
        "output": {"class": "choice", "from": "data:source", "input_type": "logits", "beam_size": 1,
                   "target": "classes", "initial_output": 1},
        "end": {"class": "compare", "from": "output", "value": 0},
        "table": {"class": "edit_distance_table", "from": "output", "target": "layer:base:data:classes",
                  "is_output_layer": True},
    }  # fmt: skip
    net = {"output": {"class": "rec", "from": "data", "unit": unit, "target": "classes"}}
    specs = {"data": TensorSpec(dim=3), "classes": SPECS["classes"]}
    lengths = {"data": torch.tensor([4, 4, 4]), "classes": batch.lengths["classes"]}
    search = Batch({"data": scores, "classes": batch["classes"]}, lengths, ["a", "b", "c"])
    model = NetworkModel(net, specs, search=True).eval()
    value = model(search, search=True, layers=["output/table"]).outputs["output/table"]
    table = value.batch_major().raw.flatten(0, 1)
    for row, target, size in zip(table, batch["classes"].tolist(), batch.lengths["classes"], strict=True):
        for s in range(int(size) + 1):
            assert row[2, s] == distance([1, 2, 0], target[:s])


def test_frames_of_a_tensor_from_outside() -> None:
    unit = {
        "other": {"class": "rec_unstack", "from": "base:twice", "axis": "T"},
        "output": {"class": "combine", "kind": "add", "from": ["other", "prev:output"], "n_out": 2},
    }
    net = {
        "twice": {"class": "eval", "from": "data", "eval": "2 * source(0)"},
        "output": {"class": "rec", "from": "data", "unit": unit},
    }
    x = torch.randn(2, 5, 2)
    batch = Batch({"data": x}, {"data": torch.tensor([5, 3])}, ["a", "b"])
    for move_out in (True, False):
        model = NetworkModel(net, {"data": TensorSpec(dim=2)}, optimize_move_layers_out=move_out)
        torch.testing.assert_close(model(batch).outputs["output"].batch_major().raw, 2 * x.cumsum(1))


def test_errors() -> None:
    short = {**UNIT, "table": {**UNIT["table"], "target": "classes"}}
    with pytest.raises(NetworkError, match="layer:base:data:NAME"):
        NetworkModel({"output": {"class": "rec", "from": "data", "unit": short}}, SPECS)
    with pytest.raises(NetworkError, match="inside of a rec layer"):
        NetworkModel({"output": {"class": "rec_unstack", "from": "data"}}, SPECS)
