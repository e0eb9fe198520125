"""The checkpoint store on the real disk: layout, loading, falling back, and whose checkpoints they are."""

import json
import logging
from dataclasses import replace

import pytest
import torch

from returnn_hydra.engine.checkpoint import CheckpointStore, run_id_of_folder
from returnn_hydra.engine.errors import DamagedStateError, NoCheckpointError, NonFiniteError, StateWriteError
from returnn_hydra.engine.files import FileFacts, FileSystem
from returnn_hydra.engine.manifest import Progress, seal

DISK = FileSystem()


def state(value=1.0):
    model = torch.nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(value)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return model.state_dict(), {
        "optimizer": optimizer.state_dict(),
        "optimizer_class_name": "Adam",
        "optimizer_opts": {"lr": 0.5},
        "param_names": ["weight", "bias"],
    }


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "run", "me", {"seed": 1})


def progress(epoch, batch=None, **more):
    return Progress(epoch, batch, 10 * epoch + (batch or 0), 0.25, more)


def test_the_files_have_the_layout_of_returnn(store):
    model, optimizer = state()
    store.save_epoch(progress(3), model, optimizer)
    assert sorted(path.name for path in store.folder.iterdir()) == [
        "model.003.json",
        "model.003.opt.pt",
        "model.003.pt",
    ]
    content = torch.load(store.folder / "model.003.pt", weights_only=True)
    assert list(content["model"]) == ["weight", "bias"]
    assert {key: content[key] for key in ("epoch", "step", "effective_learning_rate")} == {
        "epoch": 3,
        "step": 30,
        "effective_learning_rate": 0.25,
    }
    assert isinstance(content["returnn_version"], str)
    content = torch.load(store.folder / "model.003.opt.pt", weights_only=True)
    assert content["optimizer_class_name"] == "Adam"
    assert content["param_names"] == ["weight", "bias"]
    assert (content["epoch"], content["step"]) == (3, 30)
    manifest = json.loads((store.folder / "model.003.json").read_text())
    assert manifest["files"]["model.003.pt"]["bytes"] == (store.folder / "model.003.pt").stat().st_size
    assert manifest["run_id"] == "me"
    assert manifest["fingerprint"] == {"seed": 1}


def test_epochs_above_999_have_four_digits(store):
    store.save_epoch(progress(1000), state()[0], None)
    store.save_epoch(progress(999), state()[0], None)
    assert (store.folder / "model.1000.pt").exists()
    assert store.epochs() == [999, 1000]
    assert store.load_newest().progress.epoch == 1000


def test_what_was_saved_is_loaded(store):
    model, optimizer = state(4.0)
    store.save_epoch(progress(1, scores=[0.5, None], position={"batch": 3}), model, optimizer)
    found = store.load_newest()
    assert found.progress == progress(1, scores=[0.5, None], position={"batch": 3})
    assert all(torch.equal(found.model[name], value) for name, value in model.items())
    restored = torch.optim.Adam(torch.nn.Linear(2, 2).parameters())
    restored.load_state_dict(found.optimizer["optimizer"])
    assert torch.equal(restored.state_dict()["state"][0]["exp_avg"], optimizer["optimizer"]["state"][0]["exp_avg"])


def test_the_newest_is_found_among_epochs_and_slots(store):
    order = [progress(1, 5), progress(1, 9), progress(1), progress(2, 1), progress(2, 2), progress(2, 3), progress(2)]
    for value, at in enumerate(order):
        save = store.save_epoch if at.batch is None else store.save_latest
        save(at, *state(float(value)))
        assert store.load_newest().progress == at
    slots = {manifest.name: manifest.progress.batch for manifest in store.manifests() if "latest" in manifest.name}
    assert sorted(slots.values()) == [2, 3]
    store.remove_latest()
    assert [manifest.name for manifest in store.manifests()] == ["model.002", "model.001"]


def test_one_epoch(store):
    for epoch in (1, 2):
        store.save_epoch(progress(epoch), *state(float(epoch)))
    assert store.load(1).model["weight"][0, 0] != store.load(2).model["weight"][0, 0]
    assert store.load(1).optimizer is None
    assert store.load(1, with_optimizer=True).optimizer["optimizer_class_name"] == "Adam"
    with pytest.raises(NoCheckpointError, match=r"no checkpoint of epoch 7, there are \[1, 2\]"):
        store.load(7)
    store.remove_epoch(1)
    store.remove_epoch(1)
    assert store.epochs() == [2]
    assert sorted(path.name for path in store.folder.iterdir()) == [
        "model.002.json",
        "model.002.opt.pt",
        "model.002.pt",
    ]


def test_nothing_saved(store):
    assert store.load_newest() is None
    assert store.epochs() == []
    with pytest.raises(NoCheckpointError, match="there are none"):
        store.load(1)


def test_an_epoch_is_saved_again(store):
    store.save_epoch(progress(1), *state(1.0))
    first = store.load(1).model["weight"]
    store.save_epoch(progress(1), state(2.0)[0], None)
    assert not torch.equal(store.load(1).model["weight"], first)
    assert store.load_newest().optimizer is None
    assert not (store.folder / "model.001.opt.pt").exists()


@pytest.mark.parametrize("suffix", [".pt", ".opt.pt", ".json"])
def test_damage_is_loud_and_the_epoch_before_is_used(store, caplog, suffix):
    for epoch in (1, 2):
        store.save_epoch(progress(epoch), *state(float(epoch)))
    path = store.folder / f"model.002{suffix}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with caplog.at_level(logging.ERROR):
        assert store.load_newest().progress.epoch == 1
    assert "DAMAGED CHECKPOINT" in caplog.text
    assert str(path) in caplog.text
    with pytest.raises(DamagedStateError, match=rf"model\.002\{suffix}"):
        store.load(2, with_optimizer=True)


def test_a_damaged_optimizer_does_not_matter_where_it_is_not_used(store):
    store.save_epoch(progress(1), *state())
    (store.folder / "model.001.opt.pt").write_bytes(b"x")
    assert store.load(1).optimizer is None


def test_an_unreadable_file_is_left_out_too(store, caplog):
    for epoch in (1, 2):
        store.save_epoch(progress(epoch), *state(float(epoch)))
    (store.folder / "model.002.pt").unlink()
    (store.folder / "model.002.pt").mkdir()
    assert store.load_newest().progress.epoch == 1
    assert "EISDIR" in caplog.text


def test_when_all_are_damaged_nothing_begins_anew(store):
    store.save_epoch(progress(1), *state())
    (store.folder / "model.001.pt").unlink()
    with pytest.raises(DamagedStateError, match=r"all are damaged: model\.001\.json.*delete them to start anew"):
        store.load_newest()


def test_a_file_of_an_unfinished_save_counts_for_nothing(store, caplog):
    store.save_epoch(progress(1), *state())
    for name in ("model.002.pt", "model.002.opt.pt", "model.003.pt.tmp", "model.latest.a.json.tmp"):
        (store.folder / name).write_bytes(b"half")
    (store.folder / "model.004.json.gone").write_bytes(b"")
    (store.folder / "model.004.pt").write_bytes(b"half removed")
    (store.folder / "mine.tmp").write_bytes(b"not ours")
    store.clean_up()
    assert store.load_newest().progress.epoch == 1
    assert not caplog.records
    left = {path.name for path in store.folder.iterdir()} - {"model.001.json", "model.001.pt", "model.001.opt.pt"}
    assert left == {"model.002.pt", "model.002.opt.pt", "mine.tmp"}
    store.save_epoch(progress(2), *state())
    assert store.load_newest().progress.epoch == 2


def test_checkpoints_of_another_run_are_refused(store):
    CheckpointStore(store.folder, "you").save_epoch(progress(1), *state())
    with pytest.raises(DamagedStateError, match="from another run: you, this is me"):
        store.load(1)
    assert CheckpointStore(store.folder).load(1).manifest.run_id == "you"


def test_renamed_checkpoints_are_refused(store):
    for epoch in (1, 2):
        store.save_epoch(progress(epoch), *state(float(epoch)))
    for suffix in (".pt", ".opt.pt", ".json"):
        (store.folder / f"model.001{suffix}").replace(store.folder / f"model.002{suffix}")
    with pytest.raises(DamagedStateError, match=r"model\.002\.json: swapped: it is the manifest of model\.001"):
        store.load(2)


def test_a_manifest_that_names_other_files_is_refused(store):
    manifest = store.save_epoch(progress(1), *state())
    forged = replace(manifest, files={"../../etc/passwd": FileFacts(1, "0")})
    (store.folder / "model.001.json").write_text(forged.to_text())
    with pytest.raises(DamagedStateError, match="names other files than its own"):
        store.load(1)


def test_a_manifest_that_is_not_text(store):
    store.save_epoch(progress(1), *state())
    (store.folder / "model.001.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DamagedStateError, match=r"model\.001\.json: damaged"):
        store.load(1)


def test_a_model_file_without_a_model(store, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda content, file, save=torch.save: save({"epoch": 1}, file))
    store.save_epoch(progress(1), *state())
    with pytest.raises(DamagedStateError, match="no state dict under the key 'model'"):
        store.load(1)


def test_wrong_calls(store, tmp_path):
    with pytest.raises(ValueError, match="for reading only"):
        CheckpointStore(tmp_path).save_epoch(progress(1), *state())
    with pytest.raises(ValueError, match="epoch 1 is not finished: batch 3"):
        store.save_epoch(progress(1, 3), *state())
    with pytest.raises(ValueError, match="epoch 1 is finished"):
        store.save_latest(progress(1), *state())


def test_bad_numbers_are_not_saved(store):
    store.save_epoch(progress(1), *state())
    model, optimizer = state()
    model["bias"][1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"model\.bias"):
        store.save_epoch(progress(2), model, optimizer)
    model, optimizer = state()
    optimizer["optimizer"]["state"][0]["exp_avg"][0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"optimizer\.state\.0\.exp_avg"):
        store.save_epoch(progress(2), model, optimizer)
    assert store.load_newest().progress.epoch == 1
    store.may_be_infinite = ["mask"]
    store.save_epoch(progress(2), {"mask": torch.tensor([-float("inf")])}, None)


def test_free_space_is_checked(store, monkeypatch):
    store.check_space(*state())
    monkeypatch.setattr(store.disk, "free_bytes", lambda folder: 20_000)
    store.check_space(*state(), copies=1)
    with pytest.raises(StateWriteError, match=r"ENOSPC\); 24,816 bytes needed, 20,000 bytes free"):
        store.check_space(*state(), copies=3)


def test_identity(tmp_path, caplog):
    folder = tmp_path / "run"
    run_id = run_id_of_folder(folder, DISK)
    assert len(run_id) == 32
    assert run_id_of_folder(folder, DISK) == run_id
    assert run_id_of_folder(tmp_path / "other", DISK) != run_id
    CheckpointStore(folder, run_id).save_epoch(progress(1), *state())
    for damaged in (b"{}", b"\xff", seal({"other": 1}).encode(), b""):
        (folder / "run.json").write_bytes(damaged)
        assert run_id_of_folder(folder, DISK) == run_id
        assert "run.json" in caplog.text
    (folder / "run.json").unlink()
    assert run_id_of_folder(folder, DISK) == run_id


def test_identity_of_a_folder_with_two_runs(tmp_path):
    CheckpointStore(tmp_path, "me").save_epoch(progress(1), *state())
    CheckpointStore(tmp_path, "you").save_epoch(progress(2), *state())
    with pytest.raises(DamagedStateError, match=r"several runs \(me, you\)"):
        run_id_of_folder(tmp_path, DISK)


def test_other_prefixes_stand_beside_each_other(tmp_path):
    first, second = (CheckpointStore(tmp_path, "me", prefix=prefix) for prefix in ("model", "teacher.v1"))
    first.save_epoch(progress(1), *state())
    second.save_epoch(progress(2), *state())
    assert (first.epochs(), second.epochs()) == ([1], [2])


def test_manifests_come_newest_first_and_only_when_asked_for(store, monkeypatch):
    store.save_epoch(progress(1), *state())
    store.save_latest(progress(2, 3), *state())
    store.save_epoch(progress(2), *state())
    store.save_latest(progress(3, 1), *state())
    names = [manifest.name for manifest in store.manifests()]
    assert names == ["model.latest.b", "model.002", "model.latest.a", "model.001"]
    assert sorted(names) == store.names()
    read = []
    manifest = store.manifest
    monkeypatch.setattr(store, "manifest", lambda name: read.append(name) or manifest(name))
    assert store.epochs() == [1, 2]
    assert read == []
    assert store.load_newest().manifest.name == "model.latest.b"
    assert sorted(read) == ["model.latest.a", "model.latest.b"]


def test_one_by_its_name(store):
    store.save_epoch(progress(1), *state(1.0))
    store.save_latest(progress(2, 3), *state(2.0))
    assert store.load_named("model.001").progress == progress(1)
    latest = store.load_named("model.latest.a")
    assert latest.progress == progress(2, 3)
    assert latest.optimizer is not None
    with pytest.raises(NoCheckpointError, match=r"model\.002\.json: no such manifest .*model\.001, model\.latest\.a"):
        store.load_named("model.002")


def test_parameters_beside_their_average_are_looked_at(store):
    model, optimizer = state()
    bad = {"trained_parameters": {"weight": torch.tensor([float("nan")])}}
    with pytest.raises(NonFiniteError, match=r"trained_parameters\.weight"):
        store.save_epoch(progress(1), model, {**optimizer, **bad})
    assert store.load_newest() is None
