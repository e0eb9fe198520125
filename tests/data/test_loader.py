"""Every sequence once, whoever reads it; errors arrive; nothing stays behind."""

import gc
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.batching import Batching
from returnn_hydra.data.dataset import DataError, Dataset, Examples
from returnn_hydra.data.loader import Loader
from returnn_hydra.data.order import SeqOrder
from returnn_hydra.data.stream_loader import StreamLoader
from returnn_hydra.data.streaming import Example, StreamingDataset

SPECS = {"data": TensorSpec(dim=2), "classes": TensorSpec(dim=500, sparse=True)}
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Corpus(Dataset):
    """Sequence i holds the number i; `fails` says what happens at sequence 13."""

    def __init__(self, num_seqs=40, fails="", first_epoch=0):
        self.streams = SPECS
        self.num_seqs = num_seqs
        self.fails = fails
        self.lens = np.random.RandomState(5).randint(1, 20, num_seqs)
        self.epoch = first_epoch
        self.reads = 0

    def __len__(self):
        return self.num_seqs

    def seq_tags(self, indices):
        return [f"corpus/{i}" for i in indices]

    def seq_lengths(self, stream):
        return self.lens

    def at_epoch(self, epoch):
        return Corpus(self.num_seqs, self.fails, epoch)

    def read(self, indices):
        self.reads += 1
        if 13 in indices and self.fails == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if 13 in indices and self.fails == "raise":
            raise ZeroDivisionError("no such luck")
        if 13 in indices and self.fails == "data":
            raise DataError("file.hdf: sequence 'corpus/13' is broken")
        data = [np.full((self.lens[i], 2), self.epoch * 100 + i, np.float32) for i in indices]
        classes = [np.full(self.lens[i], i, np.int32) for i in indices]
        return Examples(self.seq_tags(indices), {"data": data, "classes": classes})


def loader(corpus=None, mode="random", batch_size=60, **options):
    return Loader(corpus or Corpus(), SPECS, SeqOrder(mode), Batching(batch_size=batch_size), **options)


def contents(batches):
    return [(batch.seq_tags, batch["data"].tolist(), batch["classes"].tolist(), batch.epoch) for batch in batches]


def live_threads():
    return [thread for thread in threading.enumerate() if thread.name == "read_ahead"]


@pytest.fixture
def ended():
    """Whether the threads and processes are gone that a test started; other tests' may still be there."""
    before = {*live_threads(), *multiprocessing.active_children()}
    return lambda: {*live_threads(), *multiprocessing.active_children()} <= before


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_every_sequence_once_with_any_number_of_workers():
    expected = contents(loader(prefetch=0).epoch(3))
    tags = [tag for batch in expected for tag in batch[0]]
    assert sorted(tags) == sorted(f"corpus/{i}" for i in range(40))
    for tag, row in [(tag, row) for tags, data, _, _ in expected for tag, row in zip(tags, data, strict=True)]:
        assert row[0] == [300 + int(tag.split("/")[1])] * 2
    assert contents(loader().epoch(3)) == expected
    for num_workers in (1, 2, 3):
        assert contents(loader(num_workers=num_workers).epoch(3)) == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_goes_on_in_the_middle_without_reading_what_was_before(num_workers):
    whole = contents(loader().epoch(2))
    for start in (0, 3, len(whole) - 1, len(whole)):
        assert contents(loader(num_workers=num_workers).epoch(2, start)) == whole[start:]

    class Counted(Corpus):
        def at_epoch(self, epoch):
            return self

    corpus = Counted()
    assert len(list(loader(corpus, prefetch=0).epoch(2, len(whole) - 1))) == corpus.reads == 1


def test_number_of_batches_and_statistics():
    data = loader()
    batches = list(data.epoch(1))
    facts = data.statistics(1)
    frames = sum(int(batch.lengths["data"].sum()) for batch in batches)
    padded = sum(batch["data"].shape[0] * batch["data"].shape[1] for batch in batches)
    assert data.num_batches(1) == len(batches) == facts["num_batches"]
    assert (facts["num_seqs"], facts["num_frames"]) == (40, frames) == (40, Corpus().lens.sum())
    assert facts["padding_fraction"] == pytest.approx(1 - frames / padded, abs=1e-6)
    assert facts["warnings"] == []
    assert all(batch["data"].shape[0] * batch["data"].shape[1] <= 60 for batch in batches)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 60), st.sampled_from(["random", "laplace", "bucket"]))
def test_ranks(world_size, batch_size, mode):
    parts = [loader(mode=mode, batch_size=batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({part.num_batches(1) for part in parts}) == 1
    tags = [tag for part in parts for batch in part.epoch(1) for tag in batch.seq_tags]
    assert len(tags) == len(set(tags))
    assert parts[0].statistics(1)["num_left_out"] > 0 or len(tags) == 40


def test_the_part_that_is_done_is_the_same_on_all_ranks():
    def loader(rank=0, world_size=2):
        return Loader(Corpus(), order=SeqOrder("random"), batching=Batching(50), rank=rank, world_size=world_size)

    one = loader(world_size=1)
    sizes = one.batches(1).sizes()
    assert [one.part_done(1, i) for i in range(len(sizes) + 1)] == pytest.approx([*(np.cumsum(sizes) - sizes) / 40, 1])
    two = [loader(0), loader(1)]
    dealt = sum(part.batches(1).sizes() for part in two)
    assert [two[1].part_done(1, i) for i in range(len(dealt))] == pytest.approx((np.cumsum(dealt) - dealt) / 40)
    assert [two[0].part_done(1, i) for i in range(len(dealt))] == [two[1].part_done(1, i) for i in range(len(dealt))]
    done = float(np.cumsum(dealt)[1] / 40)
    for rest in (one, *two):
        rest.go_on(1, [(2, 2)])
    assert one.part_done(1, 2) == pytest.approx(done)
    assert one.part_done(1, one.num_batches(1)) == 1
    assert two[0].num_batches(1) == len(dealt)


def test_partition_epoch_and_filter():
    corpus = Corpus()
    batching = Batching(max_seqs=3, min_seq_length=5)
    data = Loader(corpus, SPECS, SeqOrder("laplace:.4", partition_epoch=3), batching)
    tags = [[tag for batch in data.epoch(epoch) for tag in batch.seq_tags] for epoch in (1, 2, 3)]
    seen = [tag for part in tags for tag in part]
    assert sorted(seen) == sorted(corpus.seq_tags(np.nonzero(corpus.lens >= 5)[0]))
    assert max(map(len, tags)) - min(map(len, tags)) <= 1
    assert data.statistics(1)["num_filtered"] == np.count_nonzero(corpus.lens < 5)
    assert "left out by min_seq_length" in data.statistics(1)["warnings"][0]


def test_bucket_pads_least_and_mixes():
    corpus = Corpus(400)
    padding = {}
    for mode in ("random", "laplace:.50", "bucket", "sorted"):
        data = loader(corpus, mode, 200)
        padding[mode] = data.statistics(1)["padding_fraction"]
    assert padding["bucket"] <= padding["sorted"] + 0.01 < padding["laplace:.50"] < padding["random"]
    longest = [int(batch.lengths["data"].max()) for batch in loader(corpus, "bucket", 200).epoch(1)]
    assert longest != sorted(longest)
    assert contents(loader(corpus, "bucket").epoch(1)) == contents(loader(corpus, "bucket").epoch(1))


def test_chunks():
    data = Loader(Corpus(), SPECS, None, Batching(max_seqs=4, chunking="8:4", min_chunk_size=3))
    batches = list(data.epoch(1))
    assert max(batch["data"].shape[1] for batch in batches) == 8
    assert sum(batch.num_seqs for batch in batches) == sum(
        1 for length in Corpus().lens for start in range(0, length, 4) if min(8, length - start) >= 3
    )
    assert all(torch.equal(batch.lengths["data"], batch.lengths["classes"]) for batch in batches)


def test_repeated_tags():
    class Twice(Corpus):
        def seq_tags(self, indices):
            return [f"corpus/{i // 2}" for i in indices]

        def at_epoch(self, epoch):
            return self

    data = loader(Twice(), unique_seq_tags=True)
    tags = [tag for batch in data.epoch(1) for tag in batch.seq_tags]
    assert sorted(tags) == sorted(f"corpus/{i}" for i in range(20))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_errors_arrive_with_their_tag(num_workers, prefetch, ended):
    started = time.monotonic()
    with pytest.raises(DataError, match=r"file.hdf: sequence 'corpus/13' is broken"):
        list(loader(Corpus(fails="data"), num_workers=num_workers, prefetch=prefetch).epoch(1))
    with pytest.raises(DataError, match=r"ZeroDivisionError: no such luck, while reading .*'corpus/13'"):
        list(loader(Corpus(fails="raise"), num_workers=num_workers, prefetch=prefetch).epoch(1))
    assert time.monotonic() - started < 20
    assert wait_for(ended)


def test_killed_worker_ends_the_run(ended):
    started = time.monotonic()
    with pytest.raises(DataError, match="a loader worker failed at batch"):
        list(loader(Corpus(fails="kill"), num_workers=2).epoch(1))
    assert time.monotonic() - started < 20
    assert wait_for(ended)


class CollectsGarbage(Corpus):
    """Says how many objects the process's garbage collection leaves alone."""

    def at_epoch(self, epoch):
        return self

    def seq_lengths(self, stream):
        return np.ones(len(self), np.int64)

    def read(self, indices):
        gc.collect()
        data = [np.full((1, 2), gc.get_freeze_count(), np.float32) for _ in indices]
        return Examples(self.seq_tags(indices), {"data": data})


def test_garbage_collection_of_workers_leaves_shared_memory_alone():
    counts = [
        int(batch["data"].min())
        for batch in Loader(CollectsGarbage(), {"data": TensorSpec(dim=2)}, num_workers=2).epoch(1)
    ]
    assert min(counts) > 10_000
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_closing_early_leaves_nothing(num_workers, ended):
    batches = loader(num_workers=num_workers).epoch(1)
    next(batches)
    if num_workers:
        assert len(multiprocessing.active_children()) == 2
    else:
        assert live_threads()
    batches.close()
    assert wait_for(ended)


def test_slow_consumer_bounds_what_is_read_ahead():
    class Counted(Corpus):
        def at_epoch(self, epoch):
            return self

    corpus = Counted()
    batches = loader(corpus, prefetch=2).epoch(1)
    next(batches)
    time.sleep(0.2)
    assert corpus.reads <= 4
    batches.close()


def test_wrong_arguments():
    for options in ({"num_workers": -1}, {"rank": 2, "world_size": 2}):
        with pytest.raises(ValueError, match=next(iter(options))):
            loader(**options)
    for option in ("batch_size", "max_seq_length", "min_chunk_size"):
        with pytest.raises(ValueError, match=rf"{option}=.'dta': 5.: no stream 'dta' with a time axis .there is: data"):
            Loader(Corpus(), SPECS, None, Batching(**{option: {"dta": 5}}))
    with pytest.raises(DataError, match="'z': the data set has no such stream"):
        Loader(Corpus(), {"z": TensorSpec(dim=2)})
    with pytest.raises(ValueError, match=r"did you mean laplace:.10"):
        loader(mode="laplace.10")

    class Unknown(Corpus):
        def seq_lengths(self, stream):
            return None

        def at_epoch(self, epoch):
            return self

    with pytest.raises(DataError, match="Unknown does not know the lengths"):
        loader(Unknown()).num_batches(1)


class Stream(StreamingDataset):
    """The sequences of a Corpus, one after the other."""

    def __init__(self, fails=""):
        self.streams = SPECS
        self.fails = fails

    def iterate(self, epoch, rank=0, num_ranks=1):
        corpus = Corpus(fails=self.fails, first_epoch=epoch)
        for i in range(rank, 40, num_ranks):
            examples = corpus.read([i])
            yield Example(examples.seq_tags[0], {name: arrays[0] for name, arrays in examples.streams.items()})


def test_streaming_source():
    expected = contents(loader(mode="default").epoch(2))
    data = StreamLoader(Stream(), SPECS, Batching(batch_size=60))
    assert data.num_batches(2) is None
    assert contents(data.epoch(2)) == expected
    assert data.statistics(2)["num_frames"] == Corpus().lens.sum()
    known = loader(mode="default").statistics(2)
    assert {name: known[name] for name in data.statistics(2)} == data.statistics(2)
    assert contents(data.epoch(2, start=4)) == expected[4:]
    for num_workers in (1, 2, 3):
        batches = list(StreamLoader(Stream(), SPECS, Batching(batch_size=60), num_workers=num_workers).epoch(2))
        tags = [tag for batch in batches for tag in batch.seq_tags]
        assert sorted(tags) == sorted(f"corpus/{i}" for i in range(40))
    parts = [StreamLoader(Stream(), SPECS, Batching(batch_size=60), rank=r, world_size=3).epoch(2) for r in range(3)]
    assert sorted(tag for part in parts for batch in part for tag in batch.seq_tags) == sorted(tags)


def test_streaming_options():
    batching = Batching(max_seqs=3, min_seq_length=4, chunking="6:3", min_chunk_size=2)
    expected = contents(Loader(Corpus(), SPECS, None, batching).epoch(2))
    assert contents(StreamLoader(Stream(), SPECS, batching).epoch(2)) == expected
    skipping = Batching(batch_size=12, on_too_long="skip")
    expected = contents(Loader(Corpus(), SPECS, None, skipping).epoch(1))
    assert contents(StreamLoader(Stream(), SPECS, skipping).epoch(1)) == expected
    with pytest.raises(DataError, match=r"corpus/.* on_too_long=error"):
        list(StreamLoader(Stream(), SPECS, Batching(batch_size=12, on_too_long="error")).epoch(1))
    with pytest.raises(ValueError, match="shuffle_batches=true needs all batches"):
        StreamLoader(Stream(), SPECS, Batching(shuffle_batches=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streams_shuffle_batches_within_blocks(num_workers):
    def tags(shuffle_batches, epoch=1, start=0, seed=3):
        options = Batching(max_seqs=4, shuffle_batches=shuffle_batches)
        data = StreamLoader(Stream(), SPECS, options, num_workers=num_workers, seed=seed)
        return [tuple(batch.seq_tags) for batch in data.epoch(epoch, start)]

    plain, shuffled = tags(False), tags(4)
    assert len(plain) == 10 and shuffled != plain and sorted(shuffled) == sorted(plain)
    assert tags(4) == shuffled
    assert tags(4, start=3) == shuffled[3:]
    assert tags(4, seed=4) != shuffled != tags(4, epoch=2)
    if not num_workers:
        for block in (slice(0, 4), slice(4, 8), slice(8, 10)):
            assert sorted(shuffled[block]) == sorted(plain[block])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streaming_sources_tell_what_they_left_out(num_workers):
    batching = Batching(batch_size=12, max_seqs=3, min_seq_length=4, on_too_long="skip")
    data = StreamLoader(Stream(), SPECS, batching, num_workers=num_workers)
    assert data.statistics(1)["warnings"] == []
    list(data.epoch(1))
    expected = Loader(Corpus(), SPECS, None, batching).statistics(1)
    assert expected["num_filtered"] > 0 < expected["num_skipped"]
    for name in ("num_seqs", "num_filtered", "num_too_long", "num_skipped", "warnings"):
        assert data.statistics(1)[name] == expected[name]
    alone = StreamLoader(Stream(), SPECS, Batching(batch_size=12), num_workers=num_workers)
    list(alone.epoch(1))
    assert alone.statistics(1)["num_too_long"] == np.count_nonzero(Corpus().lens > 12)
    chunks = StreamLoader(Stream(), SPECS, Batching(chunking=9, min_chunk_size=9), num_workers=num_workers)
    list(chunks.epoch(1))
    number = np.count_nonzero(Corpus().lens < 9)
    assert chunks.statistics(1)["warnings"] == [f"{number} sequences shorter than min_chunk_size left out"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_wrong_values_of_a_stream_are_told_with_their_file(num_workers):
    class InFiles(Stream):
        def file_of(self, seq_tag):
            return f"folder/{seq_tag}.wav"

    wrong = InFiles()
    wrong.streams = {**SPECS, "classes": TensorSpec(dim=13, sparse=True)}
    data = StreamLoader(wrong, num_workers=num_workers)
    with pytest.raises(DataError, match=r"folder/corpus/(\d+).wav: sequence 'corpus/\1', stream 'classes': label \1"):
        list(data.epoch(1))
    data = StreamLoader(InFiles(), SPECS, Batching(batch_size=12, on_too_long="error"), num_workers=num_workers)
    with pytest.raises(DataError, match=r"folder/corpus/.*.wav: sequence .* on_too_long=error"):
        list(data.epoch(1))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streaming_errors(num_workers, ended):
    with pytest.raises(DataError, match=r"file.hdf: sequence 'corpus/13' is broken"):
        list(StreamLoader(Stream("data"), SPECS, num_workers=num_workers).epoch(1))
    with pytest.raises(DataError, match="ZeroDivisionError: no such luck"):
        list(StreamLoader(Stream("raise"), SPECS, num_workers=num_workers).epoch(1))
    assert wait_for(ended)
