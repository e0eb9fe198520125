"""User functions on sequences and on streams of them."""

import os
import pickle
from dataclasses import replace
from functools import partial

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.arrays import StaticDataset
from returnn_hydra.data.augment import AddNoise, Compose, SpecAugment
from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.hdf import HDFDataset
from returnn_hydra.data.hdf_writer import HDFWriter
from returnn_hydra.data.order import SeqOrder
from returnn_hydra.data.postprocessing import (
    DatasetStream,
    LaplaceOrdering,
    PostprocessingDataset,
    PostprocessingStream,
    Sequential,
)
from returnn_hydra.data.streaming import Example


def dataset(lengths=(5, 3, 9, 1, 7)):
    data = [
        {"data": np.full((n, 4), i + 1, dtype="float32"), "classes": np.arange(n) % 3} for i, n in enumerate(lengths)
    ]
    return StaticDataset(data, {"data": {"dim": 4}, "classes": {"dim": 3, "sparse": True}})


def add_noise(streams, rng):
    return {**streams, "data": streams["data"] + rng.normal(size=streams["data"].shape).astype("float32")}


def facts(streams, *, epoch, seq_tag, seq_idx):
    return {"data": streams["data"] * 0 + epoch, "tag": np.array(f"{seq_tag} {seq_idx}")}


def shorten(streams, **facts):
    return {name: array[:-1] for name, array in streams.items()}


def fail_at_seq_2(streams, seq_tag):
    return streams if seq_tag != "seq-2" else 1 / 0


def test_draws_depend_on_seed_epoch_and_sequence_alone():
    source = PostprocessingDataset(dataset(), add_noise)
    all_of_2 = source.at_epoch(2).read(range(5)).streams["data"]
    some = pickle.loads(pickle.dumps(source)).at_epoch(2).read([4, 1]).streams["data"]
    np.testing.assert_array_equal(some[0], all_of_2[4])
    np.testing.assert_array_equal(some[1], all_of_2[1])
    assert not np.array_equal(some[0], source.at_epoch(3).read([4]).streams["data"][0])
    assert not np.array_equal(
        some[0], PostprocessingDataset(dataset(), add_noise, seed=2).at_epoch(2).read([4]).streams["data"][0]
    )
    assert not np.array_equal(all_of_2[0][:1] - 1, all_of_2[1][:1] - 2)


def in_place(streams):
    streams["data"] += 1
    return streams


def test_functions_may_change_what_they_get(tmp_path):
    """Nobody else sees it: neither the cache of the source, nor a file that is read as it is."""
    with HDFWriter(tmp_path / "x.hdf", {"data": TensorSpec(dim=2)}) as writer:
        writer.write("a", {"data": np.zeros((3, 2), "f4")})
    with h5py.File(tmp_path / "x.hdf", "r+") as file:
        rows = file["inputs"][...]
        del file["inputs"]
        file["inputs"] = rows
    hdf = [HDFDataset(tmp_path / "x.hdf", cache=cache) for cache in ("ram", "none")]
    for source in (*hdf, StaticDataset([{"data": np.zeros((3, 2), "f4")}])):
        changed = PostprocessingDataset(source, in_place)
        stream = PostprocessingStream(
            source, lambda examples: (replace(e, streams=in_place(e.streams)) for e in examples)
        )
        for epoch in (1, 2):
            assert (changed.at_epoch(epoch).read([0]).streams["data"][0] == 1).all()
            assert (next(stream.iterate(epoch)).streams["data"] == 1).all()


def test_other_streams_come_out():
    outputs = {"data": {"dim": 4}, "tag": {"shape": [], "dtype": "string"}}
    source = PostprocessingDataset(dataset(), facts, outputs, same_lengths=["data"]).at_epoch(3)
    examples = source.read([2])
    assert examples.streams["data"][0].tolist() == [[3] * 4] * 9
    assert str(examples.streams["tag"][0]) == "seq-2 2"
    assert source.seq_lengths("data").tolist() == [5, 3, 9, 1, 7]
    assert PostprocessingDataset(dataset(), facts, outputs).seq_lengths("data") is None
    assert source.order_lengths().tolist() == [5, 3, 9, 1, 7]


def test_functions_one_after_the_other_know_what_one_alone_does():
    outputs = {"data": {"dim": 4}, "tag": {"shape": (), "dtype": "string"}}
    composed = PostprocessingDataset(dataset(), Compose([add_noise, partial(facts)]), outputs).at_epoch(3)
    assert str(composed.read([2]).streams["tag"][0]) == "seq-2 2"
    failing = PostprocessingDataset(dataset(), Compose([partial(fail_at_seq_2)]))
    with pytest.raises(DataError, match="fail_at_seq_2: seq_tag 'seq-2': ZeroDivisionError"):
        failing.read([2])


def test_errors_name_the_sequence():
    with pytest.raises(DataError, match=r"fail_at_seq_2: seq_tag 'seq-2': ZeroDivisionError"):
        PostprocessingDataset(dataset(), fail_at_seq_2).read([1, 2])
    with pytest.raises(DataError, match=r"map_seq, seq_tag 'seq-0', stream 'data': 4 frames of 5, but same_lengths"):
        PostprocessingDataset(dataset(), shorten, same_lengths=True).read([0])
    with pytest.raises(DataError, match=r"got the streams \['data', 'tag'\], expected \['classes', 'data'\]"):
        PostprocessingDataset(dataset(), facts).read([0])
    seven = {"data": {"dim": 7}, "classes": {"dim": 3, "sparse": True}}
    with pytest.raises(DataError, match=r"stream 'data': shape \(5, 4\), expected \(any, 7\)"):
        PostprocessingDataset(dataset(), add_noise, seven).read([0])
    with pytest.raises(DataError, match="same_lengths: no stream 'date'"):
        PostprocessingDataset(dataset(), add_noise, same_lengths=["date"])


def every_second(examples):
    for i, example in enumerate(examples):
        if i % 2 == 0:
            yield example


def twice_with_noise(examples, rng, epoch):
    for example in examples:
        for copy in (1, 2):
            data = example.streams["data"] + rng.normal(size=(1, 4)).astype("float32")
            yield Example(f"{example.seq_tag}/{copy}/{epoch}", {**example.streams, "data": data})


def fail_later(examples):
    for example in examples:
        if example.seq_tag == "seq-3":
            raise KeyError("lost")
        yield example


def die_later(examples):
    for example in examples:
        if example.seq_tag == "seq-3":
            os._exit(7)
        yield example


def read(stream, epoch=1, rank=0, num_ranks=1):
    return [(e.seq_tag, e.streams["data"].tolist()) for e in stream.iterate(epoch, rank, num_ranks)]


def test_dataset_stream():
    stream = DatasetStream(dataset(), SeqOrder("sorted"))
    assert [tag for tag, _ in read(stream)] == ["seq-3", "seq-1", "seq-0", "seq-4", "seq-2"]
    parts = [read(stream, 1, rank, 2) for rank in (0, 1)]
    assert sorted(parts[0] + parts[1]) == sorted(read(stream))
    halves = DatasetStream(dataset(), SeqOrder("random", partition_epoch=2))
    assert sorted(read(halves, 1) + read(halves, 2)) == sorted(read(stream))


def test_stream_function():
    assert [tag for tag, _ in read(PostprocessingStream(dataset(), every_second))] == ["seq-0", "seq-2", "seq-4"]
    stream = PostprocessingStream(dataset(), twice_with_noise)
    assert len(read(stream)) == 10
    assert read(stream, 2) == read(pickle.loads(pickle.dumps(stream)), 2) != read(stream, 3)
    assert read(stream)[0][0] == "seq-0/1/1"


@pytest.mark.parametrize("num_shards", [1, 2, 3, 4, 7])
def test_every_sequence_goes_to_one_rank(num_shards):
    stream = PostprocessingStream(dataset(range(1, 12)), twice_with_noise, num_shards=num_shards)
    whole = read(stream)
    assert sorted(tag for tag, _ in whole) == sorted(f"seq-{i}/{k}/1" for i in range(11) for k in (1, 2))
    for num_ranks in (1, 2, 3):
        parts = [item for rank in range(num_ranks) for item in read(stream, 1, rank, num_ranks)]
        assert sorted(parts) == sorted(whole)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_any_number_of_workers_gives_the_same():
    results = []
    for num_workers in (0, 1, 2, 3):
        stream = PostprocessingStream(dataset(range(1, 12)), twice_with_noise, num_shards=4, num_workers=num_workers)
        results.append(read(stream, 2))
    assert results[0] == results[1] == results[2] == results[3]


def test_errors_of_stream_functions():
    with pytest.raises(DataError, match=r"fail_later: epoch 1, after seq_tag 'seq-2': KeyError: 'lost'"):
        read(PostprocessingStream(dataset(), fail_later))
    with pytest.raises(DataError, match=r"fail_later: epoch 1, .*KeyError"):
        read(PostprocessingStream(dataset(), fail_later, num_shards=2, num_workers=2))
    with pytest.raises(DataError, match="worker"):
        read(PostprocessingStream(dataset(), die_later, num_shards=2, num_workers=2))
    with pytest.raises(DataError, match="not more workers than shards"):
        PostprocessingStream(dataset(), every_second, num_shards=1, num_workers=2)
    with pytest.raises(DataError, match=r"every_second, seq_tag 'seq-0', stream 'data': shape"):
        read(PostprocessingStream(dataset(), every_second, {"data": {"dim": 9}, "classes": {"dim": 3, "sparse": True}}))


@given(st.lists(st.integers(0, 20), max_size=40), st.integers(1, 7))
def test_laplace_ordering_is_sorted_within_bins(lengths, bin_size):
    examples = [Example(f"{i}", {"data": np.zeros(n)}) for i, n in enumerate(lengths)]
    out = [len(e.streams["data"]) for e in LaplaceOrdering(bin_size)(iter(examples))]
    for number, start in enumerate(range(0, len(lengths), bin_size)):
        block = lengths[start : start + bin_size]
        assert out[start : start + bin_size] == sorted(block, reverse=number % 2 == 1)


def test_laplace_ordering_reads_at_the_pace_of_its_output():
    seen = []

    def source():
        for i in range(100):
            seen.append(i)
            yield Example(str(i), {"data": np.zeros(i)})

    stream = LaplaceOrdering(10)(source())
    for number in range(1, 50):
        next(stream)
        assert len(seen) <= 10 + number


def test_sequential():
    stream = PostprocessingStream(dataset(), Sequential(twice_with_noise, LaplaceOrdering(100)))
    assert [len(data) for _, data in read(stream)] == sorted([5, 3, 9, 1, 7] * 2)


def features(t=50, f=10):
    return {"data": np.random.default_rng(5).normal(1, 1, (t, f)).astype("float32"), "classes": np.zeros(3)}


def test_spec_augment_masks_stretches_and_bands():
    streams = features()
    before = streams["data"].copy()
    out = SpecAugment(1, 10, 1.0, 1, 4)(streams, np.random.default_rng(4))
    np.testing.assert_array_equal(streams["data"], before)
    assert out["classes"] is streams["classes"]
    changed = out["data"] != before
    assert (out["data"][changed] == 0).all()
    rows, columns = changed.all(axis=1), changed.all(axis=0)
    np.testing.assert_array_equal(changed, rows[:, None] | columns[None, :])
    assert 0 < rows.sum() <= 10
    assert 0 < columns.sum() <= 4
    assert np.ptp(np.flatnonzero(rows)) == rows.sum() - 1


@pytest.mark.parametrize("seed", range(20))
def test_spec_augment_limits(seed):
    rng = np.random.default_rng(seed)
    out = SpecAugment(3, 100, 0.1, 2, 100, max_time_warp=5, mask_value="mean")(features(20), rng)["data"]
    assert out.shape == (20, 10)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    still = SpecAugment(3, 100, 0.1, 0)(features(20), np.random.default_rng(seed))["data"]
    assert (still == 0).all(axis=1).sum() <= 6


def test_time_warp_keeps_the_ends_and_the_values():
    data = {"data": np.linspace(0, 1, 30, dtype="float32")[:, None]}
    out = SpecAugment(0, 0, 0, 0, 0, max_time_warp=8)(data, np.random.default_rng(2))["data"]
    assert out[0] == 0
    assert out[-1] == 1
    assert (np.diff(out[:, 0]) > 0).all()
    assert np.abs(out - data["data"]).max() > 0.02
    tiny = {"data": np.ones((1, 3), "float32")}
    assert SpecAugment(max_time_warp=8)(tiny, np.random.default_rng(1))["data"].shape == (1, 3)


def test_spec_augment_options():
    streams = features()
    assert SpecAugment(first_epoch=3)(streams, np.random.default_rng(0), epoch=2) is streams
    with pytest.raises(DataError, match="no stream 'x'"):
        SpecAugment(stream="x")(streams, np.random.default_rng(0))
    with pytest.raises(DataError, match="mask_value"):
        SpecAugment(mask_value="median")
    empty = {"data": np.zeros((0, 3))}
    assert SpecAugment()(empty, np.random.default_rng(0)) is empty


def test_ready_to_use_in_a_dataset():
    augment = Compose([AddNoise(0.1), SpecAugment(1, 3)])
    source = PostprocessingDataset(dataset(), augment, same_lengths=True)
    assert source.streams["data"] == TensorSpec(dim=4)
    a, b = (source.at_epoch(epoch).read([2]).streams["data"][0] for epoch in (1, 2))
    assert a.shape == b.shape == (9, 4)
    assert not np.array_equal(a, b)
