"""Checkpoints without a manifest: RETURNN's, single files, and the rest of an unfinished save."""

from pathlib import Path

import pytest
import torch

from returnn_hydra.engine.checkpoint import CheckpointStore
from returnn_hydra.engine.errors import DamagedStateError, NoCheckpointError
from returnn_hydra.engine.files import FileSystem
from returnn_hydra.engine.foreign import foreign_epochs, load_foreign_epoch, load_model_file
from returnn_hydra.engine.manifest import Progress

DISK = FileSystem()
GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden" / "train"


def returnn_checkpoint(folder, epoch, step=10):
    """As RETURNN writes it (returnn-spec.md 3.5)."""
    header = {"epoch": epoch, "step": step, "effective_learning_rate": 0.1, "returnn_version": "1.0"}
    torch.save({"model": {"w": torch.full((2,), float(epoch))}, **header}, folder / f"model.{epoch:03d}.pt")
    optimizer = {"optimizer": {"state": {}, "param_groups": []}, "param_names": ["w"]}
    torch.save({**optimizer, **header}, folder / f"model.{epoch:03d}.opt.pt")


def test_a_folder_of_returnn(tmp_path):
    for epoch in (1, 2, 1000):
        returnn_checkpoint(tmp_path, epoch)
    (tmp_path / "model.001.opt.pt").unlink()
    CheckpointStore(tmp_path, "me").save_epoch(Progress(3, None, 1, 0.1), {"w": torch.zeros(1)}, {"optimizer": {}})
    assert foreign_epochs(tmp_path, DISK) == [2, 1000]
    assert foreign_epochs(tmp_path / "none", DISK) == []
    file, optimizer = load_foreign_epoch(tmp_path, 2, DISK)
    assert (file.epoch, file.step, file.learning_rate) == (2, 10, 0.1)
    assert file.model["w"].tolist() == [2, 2]
    assert optimizer["param_names"] == ["w"]


def test_swapped_files_of_returnn(tmp_path):
    returnn_checkpoint(tmp_path, 1)
    returnn_checkpoint(tmp_path, 2, step=20)
    (tmp_path / "model.001.opt.pt").rename(tmp_path / "model.002.opt.pt")
    with pytest.raises(
        DamagedStateError, match="swapped: epoch 2 and step 20, its optimizer file has epoch 1 and step 10"
    ):
        load_foreign_epoch(tmp_path, 2, DISK)
    (tmp_path / "model.002.pt").rename(tmp_path / "model.003.pt")
    (tmp_path / "model.002.opt.pt").rename(tmp_path / "model.003.opt.pt")
    with pytest.raises(DamagedStateError, match="swapped"):
        load_foreign_epoch(tmp_path, 3, DISK)


def test_the_rest_of_an_unfinished_save_is_no_checkpoint_of_returnn(tmp_path):
    CheckpointStore(tmp_path, "me").save_epoch(Progress(1, None, 1, 0.1), {"w": torch.zeros(1)}, {"optimizer": {}})
    (tmp_path / "model.001.json").unlink()
    with pytest.raises(DamagedStateError, match=r"was not finished: there is no model\.001\.json"):
        load_foreign_epoch(tmp_path, 1, DISK)
    assert load_model_file(tmp_path / "model.001.pt", DISK).run_id == "me"


def test_a_file_by_its_name(tmp_path):
    returnn_checkpoint(tmp_path, 1)
    torch.save({"w": torch.ones(2)}, tmp_path / "weights")
    for name in ("model.001.pt", "model.001"):
        assert load_model_file(tmp_path / name, DISK).path == tmp_path / "model.001.pt"
    bare = load_model_file(tmp_path / "weights", DISK)
    assert bare.model["w"].tolist() == [1, 1]
    assert (bare.epoch, bare.step, bare.learning_rate, bare.run_id) == (None, None, None, None)
    with pytest.raises(NoCheckpointError, match=r"no such file, nor missing\.pt"):
        load_model_file(tmp_path / "missing", DISK)


@pytest.mark.parametrize("content", [{"model": 3}, {"a": 1}, {"model": {}}, {}])
def test_a_file_without_a_model(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(DamagedStateError, match="no state dict under the key 'model'"):
        load_model_file(tmp_path / "a.pt", DISK)


def test_a_folder_of_the_same_name_is_not_meant(tmp_path):
    torch.save({"model": {"w": torch.ones(1)}, "epoch": 3}, tmp_path / "a.pt")
    (tmp_path / "a").mkdir()
    assert load_model_file(tmp_path / "a", FileSystem()).epoch == 3


def test_the_manifest_beside_a_file_decides(tmp_path):
    store = CheckpointStore(tmp_path, "me")
    store.save_epoch(Progress(1, None, 1, 0.1), {"w": torch.zeros(1)}, None)
    store.save_epoch(Progress(2, None, 2, 0.1), {"w": torch.zeros(1)}, None)
    path = tmp_path / "model.001.pt"
    assert load_model_file(path, DISK).epoch == 1
    (tmp_path / "model.002.pt").replace(path)
    with pytest.raises(DamagedStateError, match="damaged or swapped"):
        load_model_file(path, DISK)
    (tmp_path / "model.002.json").replace(tmp_path / "model.001.json")
    with pytest.raises(DamagedStateError, match=r"swapped: it is the manifest of model\.002"):
        load_model_file(path, DISK)
    (tmp_path / "model.001.json").write_bytes(b"\xff")
    with pytest.raises(DamagedStateError, match=r"model\.001\.json"):
        load_model_file(path, DISK)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs ../shared/golden")
def test_checkpoints_that_returnn_wrote():
    for name in ("demo-rf.model.001", "demo-rf.model.005", "demo-torch.model.005"):
        file = load_model_file(GOLDEN / name, DISK)
        assert file.epoch == int(name[-3:])
        assert file.step == 100 * file.epoch
        assert "layers.0.filter" in file.model or len(file.model) > 2
    file, optimizer = load_foreign_epoch(GOLDEN, 5, DISK, prefix="demo-torch.model")
    assert len(optimizer["param_names"]) == len(file.model)
    assert foreign_epochs(GOLDEN, DISK, prefix="demo-torch.model") == [5]
