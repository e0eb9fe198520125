"""Which checkpoint RETURNN loads."""

import json
from pathlib import Path

import pytest

from returnn_hydra.compat.checkpoint_select import epoch_file, epoch_of_file, select_checkpoint, without_suffix
from returnn_hydra.config.errors import ConfigError

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden" / "checkpoint_parts.json").read_text())


@pytest.mark.parametrize(
    "case", GOLDEN["checkpoint_select"], ids=lambda case: f"{' '.join(case['files'])} {case['config']}"
)
def test_returnn_choice(case, tmp_path):
    for name in case["files"]:
        (tmp_path / name).write_bytes(b"")
    values = {
        key: value.replace("W/", f"{tmp_path}/") if isinstance(value, str) else value
        for key, value in case["config"].items()
    }
    values["model"] = f"{tmp_path}/m"
    if "raises" in case:
        with pytest.raises(ConfigError, match="no such checkpoint"):
            select_checkpoint(values)
        return
    found = select_checkpoint(values)
    assert found.epoch == case["epoch"]
    assert found.file == (case["file"] and case["file"].replace("W/", f"{tmp_path}/"))
    assert found.start_epoch == case["start_epoch"]
    assert {str(epoch): Path(file).name for epoch, file in found.existing.items()} == case["existing"]


def test_names():
    for file, epoch in GOLDEN["model_epoch_from_filename"].items():
        assert epoch_of_file(file) == epoch
    for file, plain in GOLDEN["checkpoint_filepattern"].items():
        assert without_suffix(file) == plain
    for epoch, file in GOLDEN["epoch_model_filename"].items():
        assert epoch_file("/x/model", int(epoch)) == file


def test_start_epoch_with_load_and_import(tmp_path):
    for name in ("m.001.pt", "m.001.opt.pt", "other.007.pt", "init.pt"):
        (tmp_path / name).write_bytes(b"")
    values = {"model": f"{tmp_path}/m", "load": f"{tmp_path}/other.007.pt"}
    assert select_checkpoint(values).epoch == 1  # the training's own wins
    own = select_checkpoint({**values, "start_epoch": 1})
    assert (own.file, own.start_epoch, own.with_optimizer) == (f"{tmp_path}/other.007", 8, True)
    fresh = select_checkpoint({"model": f"{tmp_path}/x", "import_model_train_epoch1": f"{tmp_path}/init.pt"})
    assert (fresh.file, fresh.epoch, fresh.start_epoch, fresh.with_optimizer) == (f"{tmp_path}/init", None, 1, False)
    with pytest.raises(ConfigError, match="start_epoch='first': expected 'auto'"):
        select_checkpoint({**values, "start_epoch": "first"})
    with pytest.raises(ConfigError, match=r"task=forward: no such checkpoint.*there is none"):
        select_checkpoint({"task": "forward", "model": f"{tmp_path}/x"})
