"""Which checkpoints stay, against a slow and plain restatement of the rule."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn_hydra.engine.checkpoint import CheckpointStore
from returnn_hydra.engine.manifest import Progress
from returnn_hydra.engine.retention import Retention

SCORES = st.floats(0, 2) | st.just(float("nan")) | st.just(float("inf"))


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(
    st.sets(st.integers(1, 30), max_size=12),
    st.dictionaries(st.integers(1, 30), SCORES, max_size=20),
    st.none() | st.integers(0, 5),
    st.none() | st.integers(0, 5),
    st.lists(st.integers(1, 30), max_size=3),
)
def test_against_the_plain_rule(epochs, scores, last, best, named):
    deleted = Retention(last, best, named).to_delete(epochs, scores)
    if last is None and best is None and not named:
        assert deleted == []
        return
    assert deleted == sorted(deleted)
    for epoch in epochs:
        newer = sum(other > epoch for other in epochs)
        value = scores.get(epoch, math.nan)
        better = sum(
            scores.get(other, math.nan) < value or (scores.get(other, math.nan) == value and other < epoch)
            for other in epochs
        )
        keep = newer < max(last or 0, 2) or epoch in named or (not math.isnan(value) and better < (best or 0))
        assert (epoch not in deleted) == keep


@pytest.fixture
def store(tmp_path):
    store = CheckpointStore(tmp_path, "me")
    for epoch in range(1, 7):
        store.save_epoch(Progress(epoch, None, epoch, 0.1), {"w": torch.full((2,), float(epoch))}, None)
    return store


SCORE = {1: 0.9, 2: 0.3, 3: 0.5, 4: 0.7, 5: 0.6, 6: 0.65}


def test_all_files_of_an_epoch_go_together(store):
    assert Retention(keep_last=2, keep_best=2, keep_epochs=[1]).apply(store, SCORE) == [4]
    assert store.epochs() == [1, 2, 3, 5, 6]
    assert not list(store.folder.glob("model.004*"))


def test_nothing_is_deleted_by_default(store):
    assert Retention().apply(store, SCORE) == []
    assert Retention(keep_last=9).apply(store, SCORE) == []


def test_never_fewer_than_two(store):
    assert Retention(keep_last=0).apply(store, SCORE) == [1, 2, 3, 4]
    assert store.load_newest().progress.epoch == 6


def test_damaged_ones_do_not_count_as_kept(store, caplog):
    (store.folder / "model.006.pt").write_bytes(b"x")
    assert Retention(keep_last=1).apply(store, SCORE) == [1, 2, 3]
    assert store.epochs() == [4, 5, 6]
    assert "model.006.pt" in caplog.text


def test_nothing_is_deleted_when_too_few_are_valid(store):
    for epoch in (2, 3, 4, 5, 6):
        (store.folder / f"model.{epoch:03d}.pt").write_bytes(b"x")
    assert Retention(keep_last=1).apply(store, SCORE) == []


def test_a_damaged_manifest_does_not_count_as_kept(store, caplog):
    (store.folder / "model.006.json").write_text("{}")
    assert Retention(keep_last=1).apply(store, SCORE) == [1, 2, 3]
    assert store.load_newest().progress.epoch == 5
    assert "model.006.json" in caplog.text
