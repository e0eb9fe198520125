"""RETURNN's choice of the deciding score."""

import json
from pathlib import Path

import pytest

from returnn_hydra.compat.score_keys import error_key, flatten_scores, returnn_choice, to_returnn_key
from returnn_hydra.optim.learning_rate_control import Newbob

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden" / "lr_control.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["error_key"])
def test_returnn_choice(case):
    stored = flatten_scores(case["error"])
    assert stored == case["stored"]
    assert error_key(stored, case["measure"]) == case["key"]


def test_order_of_the_fallbacks():
    names = ["foo", "train_score_output", "train_score", "dev_b", "dev_score_output/b", "dev_score_output", "dev_score"]
    while names:
        assert error_key(sorted(names), "unknown") == names.pop()
    assert error_key([":meta:time"]) is None
    assert error_key(["dev_error_output", "dev_score"], ["x", "dev_error"]) == "dev_error_output"


def test_our_names():
    assert to_returnn_key("dev/ce") == "dev_loss_ce"
    assert to_returnn_key("dev_score") == "dev_score"
    history = [
        (1.0, {"train/ce": 2.0, "dev/z": 1.0, "dev/fer": 3.0}),
        (1.0, {"train/ce": 1.0, "dev/z": 0.5, "dev/fer": 3.0}),
    ]
    assert Newbob(learning_rate=1.0, score=returnn_choice()).learning_rate(3, history) == 0.5  # dev_loss_fer
    assert Newbob(learning_rate=1.0, score=returnn_choice("dev_loss_z")).learning_rate(3, history) == 1.0
    assert Newbob(learning_rate=1.0, score=returnn_choice()).learning_rate(3, [(1.0, {}), (1.0, {})]) == 1.0
