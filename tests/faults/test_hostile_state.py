"""Hostile state files: nothing in them is run, and no file outside of the run folder is touched."""

import logging
import shutil

import pytest
import torch
from faulttools.hostile import Watch, corpus, good_run
from faulttools.small_trainer import content

from returnn_hydra.engine.checkpoint import CheckpointStore, run_id_of_folder
from returnn_hydra.engine.errors import RunError, StateError
from returnn_hydra.engine.files import FileSystem
from returnn_hydra.engine.foreign import foreign_epochs, load_foreign_epoch, load_model_file
from returnn_hydra.engine.lock import RunLock
from returnn_hydra.engine.manifest import Progress
from returnn_hydra.engine.score_file import ScoreFile


@pytest.fixture(scope="module")
def watch():
    return Watch()


class QuickDisk(FileSystem):
    """The real disk; power cuts are not what is tested here."""

    def fsync(self, handle):
        pass

    def fsync_folder(self, folder):
        pass


def use_everything(folder):
    """What a restart, a forward task and `load=FILE` do with a run folder; returns what was loaded."""
    disk, loaded = QuickDisk(), []

    def attempt(function):
        try:
            loaded.append(function())
        except RunError:
            loaded.append(None)

    attempt(lambda: RunLock(folder).acquire().release())
    attempt(lambda: run_id_of_folder(folder, disk))
    store = CheckpointStore(folder, "me", disk=disk)
    attempt(store.clean_up)
    attempt(store.load_newest)
    attempt(lambda: store.load(2, with_optimizer=True))
    attempt(lambda: ScoreFile(folder / "scores.jsonl", disk).read())
    attempt(lambda: load_model_file(folder / "model.002.pt", disk))
    attempt(lambda: [load_foreign_epoch(folder, epoch, disk) for epoch in foreign_epochs(folder, disk)])
    (folder / "model.002.json").unlink(missing_ok=True)
    attempt(lambda: load_model_file(folder / "model.002.pt", disk))
    attempt(lambda: load_model_file(folder / "model.002.opt.pt", disk))
    attempt(lambda: store.save_epoch(Progress(3, None, 3, 0.1), *content(3.0, 0.5)))
    attempt(lambda: ScoreFile(folder / "scores.jsonl", disk).write([{"epoch": 1}]))
    return loaded


@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore::UserWarning:torch")
def test_nothing_is_executed_and_nothing_outside_is_touched(tmp_path, watch, caplog):
    caplog.set_level(logging.CRITICAL)
    outside = tmp_path / "outside"
    outside.mkdir()
    marker, victim = outside / "executed", outside / "victim"
    victim.write_text("precious")
    items = corpus(marker)
    assert len(items) >= 300
    good, warm_up = tmp_path / "good", tmp_path / "warm-up"
    good_run(good)
    shutil.copytree(good, warm_up)
    use_everything(warm_up)  # imports that happen once
    for number, (name, plant) in enumerate(items.items()):
        folder = tmp_path / str(number)
        shutil.copytree(good, folder)
        plant(folder)
        with watch.on(folder) as events:
            loaded = use_everything(folder)
        if " links " in name:  # reading through a link is allowed: what is read is checked like everything else
            events = [event for event in events if not event.endswith("for reading")]
        assert events == [], name
        assert not marker.exists(), name
        assert victim.read_text() == "precious", name
        assert sorted(path.name for path in outside.iterdir()) == ["victim"], name
        newest = loaded[3]
        assert newest is None or newest.progress.epoch in (1, 2), name
        assert newest is None or all(isinstance(value, torch.Tensor) for value in newest.model.values()), name
    print(f"\nhostile state files: {len(items)} tried, 0 executed, 0 files touched outside the run folder")


def test_the_watch_sees_what_it_should(tmp_path, watch):
    """The audit hook itself, so that the test above can fail."""
    with watch.on(tmp_path) as events:
        (tmp_path / "inside").write_text("x")
        eval("1 + 1")
        (tmp_path.parent / "outside.txt").write_text("x")
        (tmp_path.parent / "outside.txt").unlink()
        torch.save({}, tmp_path / "a.pt")
    kinds = {event.split()[0] for event in events}
    assert {"compile", "exec", "open", "os.remove"} <= kinds
    assert not any("inside" in event for event in events)


def test_a_hostile_checkpoint_costs_one_epoch(tmp_path, caplog):
    """With a forged manifest the file is opened, refused, and the epoch before is used."""
    for name, plant in corpus(tmp_path / "executed").items():
        if name in ("os.system in .pt", "builtins.eval in .opt.pt", "os.system in model.002.json"):
            folder = tmp_path / name.replace(" ", "-")
            good_run(folder)
            plant(folder)
            store = CheckpointStore(folder, "me")
            assert store.load_newest().progress.epoch == 1
            with pytest.raises(StateError, match=r"model\.002"):
                store.load(2, with_optimizer=True)
    assert caplog.text.count("Falling back") == 2
