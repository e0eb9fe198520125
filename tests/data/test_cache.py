"""What was read once is not read again."""

import os

import numpy as np
import pytest

from returnn_hydra.data.arrays import StaticDataset
from returnn_hydra.data.cache import CachedDataset
from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.views import WrappedDataset

STREAMS = {
    "data": {"dim": 2},
    "label": {"dim": 5, "sparse": True, "shape": []},
    "text": {"shape": [], "dtype": "string"},
    "pair": {"shape": [None, None], "dtype": "float32"},
}


class Counting(WrappedDataset):
    """Counts how often each sequence was read, and which streams."""

    def __init__(self, streams=STREAMS):
        data = [
            {"data": np.full((n, 2), i), "label": i, "text": f"t{i}", "pair": np.zeros((n, i))}
            for i, n in enumerate((3, 0, 5, 2))
        ]
        super().__init__(StaticDataset([{k: seq[k] for k in streams} for seq in data], streams))
        self.reads = []
        self.names = None

    def read(self, indices):
        self.reads += [(int(i), tuple(self.names or self.streams)) for i in indices]
        return super().read(indices)

    def with_streams(self, names):
        self.names = sorted(names)
        return self


NUMBERS = {name: STREAMS[name] for name in ("data", "label")}


def test_every_sequence_is_read_once():
    source = Counting(NUMBERS)
    cached = CachedDataset(source, cache="ram")
    expected = source.dataset.read([2, 0, 2, 1])
    assert not cached.is_block_copy
    for _ in range(2):
        found = cached.read([2, 0, 2, 1])
        assert found.seq_tags == expected.seq_tags
        for name in NUMBERS:
            for a, b in zip(found.streams[name], expected.streams[name], strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype
    assert sorted(i for i, _ in source.reads) == [0, 1, 2]
    cached.read([3])
    assert cached.is_block_copy


def test_a_reader_that_changes_its_array_does_not_change_the_cache():
    cached = CachedDataset(Counting(NUMBERS), cache="ram")
    cached.read([0]).streams["data"][0][:] = 7
    cached.read([0]).streams["data"][0][:] = 7
    assert cached.read([0]).streams["data"][0].tolist() == [[0, 0]] * 3


def test_what_can_not_be_kept_is_read_again():
    source = Counting()
    cached = CachedDataset(source, cache="ram")
    for _ in range(2):
        examples = cached.read([2])
        assert str(examples.streams["text"][0]) == "t2"
        assert examples.streams["pair"][0].shape == (5, 2)
    assert [names for _, names in source.reads] == [("data", "label"), ("pair", "text"), ("pair", "text")]
    assert not cached.is_block_copy


def test_modes():
    source = Counting(NUMBERS)
    for cached in (CachedDataset(source, cache="none"), CachedDataset(source, cache_fraction=0.0)):
        source.reads.clear()
        cached.read([0])
        cached.read([0])
        assert len(source.reads) == 2
    with pytest.raises(DataError, match="did you mean 'ram'"):
        CachedDataset(source, cache="rm")
    part = CachedDataset(source, cache="ram").with_streams(["label"])
    assert set(part.read([1]).streams) == {"label"}


def test_forked_processes_share_it():
    source = Counting(NUMBERS)
    cached = CachedDataset(source, cache="ram")
    cached.read([0])
    child = os.fork()
    if child == 0:
        cached.read([0, 1, 2, 3])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert cached.is_block_copy
    source.reads.clear()
    assert cached.read([2]).streams["data"][0].tolist() == [[2, 2]] * 5
    assert source.reads == []


def test_shared_before_anything_was_read():
    cached = CachedDataset(Counting(NUMBERS), cache="ram")
    cached.share_memory()
    child = os.fork()
    if child == 0:
        cached.read([0, 1, 2, 3])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert cached.is_block_copy
