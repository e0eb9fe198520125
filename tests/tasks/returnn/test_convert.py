"""A converted config trains to the same numbers."""

from pathlib import Path

import pytest
import yaml

from returnn_hydra.tasks.returnn.convert import convert, is_plain

CONFIGS = Path(__file__).parent / "configs"


@pytest.mark.parametrize("name", ["plain_torch", "rf_modules"])
def test_same_numbers(command, run, scores, name):
    small = {"num_seqs": 40, "num_epochs": 2, "batch_size": 400}
    run(f"{name}.config", **small)
    expected = scores()
    overrides = [(key, str(value)) for key, value in small.items()]
    file, _ = convert([str(CONFIGS / f"{name}.config")], overrides, Path("converted"), name)
    assert yaml.safe_load(file.read_text())["returnn"]["batch_size"] == 400
    new = ["returnn.model=new/model", "returnn.learning_rate_file=new/lr"]
    assert command("--config-dir=converted", f"experiment={name}", *new) == 0
    assert scores("new/lr") == expected
    assert command("--config-dir=converted", f"experiment={name}", "num_epochs=3", *new) == 0
    assert sorted(scores("new/lr")) == [1, 2, 3]


def test_what_yaml_gives_back():
    assert is_plain({"a": [1, 2.5, None, True, "x"]})
    assert not any(map(is_plain, [(1, 2), {1: 2}, {"a": {(1, 2): 3}}, len, "${oc.env:HOME}"]))
