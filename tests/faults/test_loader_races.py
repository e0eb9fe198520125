"""The first epochs of many loaders while other processes take the processors: every number is the file's.

The case is RETURNN's: two threads that fill a cache, and reads that come before it is filled.
"""

import multiprocessing

import numpy as np
import pytest

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.batching import Batching
from returnn_hydra.data.hdf import HDFDataset
from returnn_hydra.data.hdf_writer import HDFWriter
from returnn_hydra.data.loader import Loader
from returnn_hydra.data.order import SeqOrder

SPECS = {"data": TensorSpec(dim=5), "classes": TensorSpec(dim=99, sparse=True)}
CACHES = ("auto", "ram", "none")


def spin(stop):
    while not stop.is_set():
        sum(range(1000))


@pytest.fixture(scope="module")
def other_work():
    """Four processes that do nothing useful."""
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    processes = [context.Process(target=spin, args=(stop,), daemon=True) for _ in range(4)]
    for process in processes:
        process.start()
    yield
    stop.set()
    for process in processes:
        process.join()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(file, what is in it by sequence)."""
    rng, path = np.random.default_rng(3), tmp_path_factory.mktemp("races") / "data.hdf"
    sequences = {}
    with HDFWriter(path, SPECS) as writer:
        for number in range(120):
            length = int(rng.integers(1, 40))
            labels = rng.integers(0, 99, length, dtype=np.int32)
            streams = {"data": rng.standard_normal((length, 5), dtype=np.float32), "classes": labels}
            sequences[f"seq-{number}"] = streams
            writer.write(f"seq-{number}", streams)
    return path, sequences


def read_first_epoch(path, sequences, number, expected_batches):
    source = HDFDataset(str(path), cache=CACHES[number % len(CACHES)])
    options = {"num_workers": int(number % 7 == 0), "prefetch": 1 + number % 4}
    loader = Loader(source, SPECS, SeqOrder("laplace:.10"), Batching(batch_size=300), **options)
    batches = []
    for batch in loader.epoch(1):
        batches.append(batch.seq_tags)
        for row, tag in enumerate(batch.seq_tags):
            for name, values in sequences[tag].items():
                assert batch.lengths[name][row] == len(values)
                assert np.array_equal(batch[name][row, : len(values)].numpy(), values), (tag, name)
    assert sorted(tag for tags in batches for tag in tags) == sorted(sequences)
    assert not expected_batches or batches == expected_batches
    return batches


def read_many(corpus, count, num_reads):
    batches = []
    for number in range(num_reads):
        batches = count.add(read_first_epoch, *corpus, number, batches) or batches
    count.close()


def test_first_epochs_are_the_files(tally, other_work, corpus):
    read_many(corpus, tally("first epoch read on a busy machine"), 15)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_five_hundred_first_epochs_are_the_files(tally, other_work, corpus):
    read_many(corpus, tally("first epoch read on a busy machine, 500"), 500)
