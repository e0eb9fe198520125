"""Which epochs RETURNN keeps."""

import json
from pathlib import Path

import pytest

from returnn_hydra.compat.checkpoint_cleanup import CleanupRule, default_keep_pattern

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden" / "lr_control.json").read_text())
CASES = GOLDEN["cleanup_old_models"]


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: str(case["num_epochs"]))
def test_returnn_keeps(case):
    scores = {
        epoch: dict(zip(CASES["error_keys"], values, strict=True)) for epoch, values in enumerate(case["errors"], 1)
    }
    rule = CleanupRule.from_config(case["cleanup_old_models"])
    assert rule.kept(range(1, case["num_epochs"] + 1), scores) == case["kept"]


def test_default_pattern():
    assert default_keep_pattern(10) == {4, 8, 5, 10}
    assert default_keep_pattern(50) == {20, 40, 5, 10}
    assert default_keep_pattern(100) == {40, 80, 10, 20}
    assert default_keep_pattern(239) == {80, 160, 20, 40}
    assert default_keep_pattern(500) == {320, 20, 40, 80, 160}
    assert default_keep_pattern(960) == {640, 20, 40, 80, 160, 320}


def test_wrong_options():
    assert CleanupRule.from_config(False) is None
    with pytest.raises(ValueError, match="unknown 'keep_n'"):
        CleanupRule.from_config({"keep_n": 3})
    with pytest.raises(ValueError, match="expected true, false or a dict"):
        CleanupRule.from_config(3)
    with pytest.raises(ValueError, match="keep_last_n=-1"):
        CleanupRule.from_config({"keep_last_n": -1})
