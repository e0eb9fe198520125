"""Saving in the background: it waits for the last one, copies first, and does not swallow errors."""

import logging
import threading

import pytest
import torch

from returnn_hydra.engine.checkpoint import CheckpointStore
from returnn_hydra.engine.errors import NonFiniteError, StateWriteError
from returnn_hydra.engine.files import FileSystem
from returnn_hydra.engine.manifest import Progress
from returnn_hydra.engine.saver import BackgroundSaver


class GatedDisk(FileSystem):
    """Writing stands still until the gate is opened."""

    def __init__(self):
        self.gate = threading.Event()
        self.started = threading.Event()

    def create(self, path):
        self.started.set()
        assert self.gate.wait(10)
        return super().create(path)


@pytest.fixture
def disk():
    return GatedDisk()


@pytest.fixture
def store(tmp_path, disk):
    return CheckpointStore(tmp_path, "me", disk=disk)


def test_training_goes_on_while_the_disk_is_slow(store, disk):
    weight = torch.zeros(3)
    with BackgroundSaver(store) as saver:
        saver.save_latest(Progress(1, 1, 1, 0.1), {"w": weight}, None)
        assert disk.started.wait(10)
        weight += 1
        disk.gate.set()
    assert store.load_newest().model["w"].tolist() == [0, 0, 0]


def test_the_next_save_waits_for_the_last(store, disk):
    with BackgroundSaver(store) as saver:
        saver.save_latest(Progress(1, 1, 1, 0.1), {"w": torch.zeros(3)}, None)
        timer = threading.Timer(0.05, disk.gate.set)
        timer.start()
        saver.save_epoch(Progress(1, None, 1, 0.1), {"w": torch.ones(3)}, None)
        assert [manifest.name for manifest in store.manifests()][-1:] == ["model.latest.a"]
        timer.join()
    assert store.load_newest().model["w"].tolist() == [1, 1, 1]


def test_bad_numbers_are_found_before_anything_is_written_and_come_with_the_next_call(store):
    saver = BackgroundSaver(store)
    saver.save_epoch(Progress(1, None, 1, 0.1), {"w": torch.tensor(float("nan"))}, None)
    with pytest.raises(NonFiniteError, match=r"model\.w: not saved"):
        saver.wait()
    assert store.disk.names(store.folder) == []


def test_state_that_json_would_change_is_found_at_once(store):
    with BackgroundSaver(store) as saver, pytest.raises(TypeError, match=r"state\.a: a tuple"):
        saver.save_epoch(Progress(1, None, 1, 0.1, {"a": (1, 2)}), {"w": torch.zeros(1)}, None)


def failing(store, disk, monkeypatch):
    def refuse(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "fsync", refuse)
    disk.gate.set()


def test_an_error_comes_with_the_next_call(store, disk, monkeypatch):
    failing(store, disk, monkeypatch)
    saver = BackgroundSaver(store)
    saver.save_epoch(Progress(1, None, 1, 0.1), {"w": torch.zeros(1)}, None)
    with pytest.raises(StateWriteError, match="ENOSPC"):
        saver.save_epoch(Progress(2, None, 1, 0.1), {"w": torch.zeros(1)}, None)
    saver.wait()


def test_an_error_of_the_last_save_comes_at_the_end(store, disk, monkeypatch):
    failing(store, disk, monkeypatch)
    with pytest.raises(StateWriteError), BackgroundSaver(store) as saver:
        saver.save_epoch(Progress(1, None, 1, 0.1), {"w": torch.zeros(1)}, None)


def test_an_error_of_the_last_save_does_not_hide_the_error_of_the_training(store, disk, monkeypatch, caplog):
    failing(store, disk, monkeypatch)
    saver = BackgroundSaver(store)
    saver.save_epoch(Progress(1, None, 1, 0.1), {"w": torch.zeros(1)}, None)
    with pytest.raises(KeyError), caplog.at_level(logging.ERROR), saver:
        raise KeyError("training failed")
    assert "The last save failed as well: can't write" in caplog.text


def test_other_jobs_wait_in_line(store, disk):
    done = []
    disk.gate.set()
    with BackgroundSaver(store) as saver:
        saver.save_epoch(Progress(1, None, 1, 0.1), {"w": torch.zeros(1)}, None)
        saver.submit(lambda: done.append(store.epochs()))
    assert done == [[1]]
