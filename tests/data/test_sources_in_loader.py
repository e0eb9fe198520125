"""Sources inside of the loaders: batches of joined, decoded and augmented data, with and without workers."""

from pathlib import Path

import numpy as np
import pytest
import torch

from returnn_hydra.data.audio import AudioZipDataset
from returnn_hydra.data.augment import SpecAugment
from returnn_hydra.data.batching import Batching
from returnn_hydra.data.cache import CachedDataset
from returnn_hydra.data.features import AudioFeatures
from returnn_hydra.data.hdf import HDFDataset
from returnn_hydra.data.loader import Loader
from returnn_hydra.data.meta import MetaDataset
from returnn_hydra.data.order import SeqOrder
from returnn_hydra.data.postprocessing import LaplaceOrdering, PostprocessingDataset, PostprocessingStream
from returnn_hydra.data.stream_loader import StreamLoader
from returnn_hydra.data.text import LmDataset
from returnn_hydra.data.vocab import Utf8Bytes

DATA = Path(__file__).parent / "golden" / "data"


def meta():
    sets = {"f": HDFDataset([DATA / "feat.hdf"]), "a": HDFDataset([DATA / "align.hdf"])}
    return MetaDataset(sets, {"data": ["f", "data"], "classes": ["a", "data"]})


def audio(**options):
    features = AudioFeatures("log_mel_filterbank", 8, random_permute=options.pop("random_permute", None))
    return AudioZipDataset(DATA / "ogg.zip", features, Utf8Bytes(), **options)


def augmented():
    return PostprocessingDataset(CachedDataset(audio()), SpecAugment(1, 3), same_lengths=True)


def lm():
    return LmDataset(DATA / "lm.txt", Utf8Bytes())


def contents(loader, epoch):
    """{tag: {stream: array}} of an epoch."""
    seqs = {}
    for batch in loader.epoch(epoch):
        for i, tag in enumerate(batch.seq_tags):
            assert tag not in seqs
            arrays = {}
            for name, tensor in batch.tensors.items():
                row = tensor[i]
                arrays[name] = row[: batch.lengths[name][i]].numpy() if isinstance(row, torch.Tensor) else str(row)
            seqs[tag] = arrays
    return seqs


def check_same(found, expected):
    assert found.keys() == expected.keys()
    for tag, arrays in expected.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[tag][name], array)


@pytest.mark.parametrize("make", [meta, audio, augmented, lm, lambda: audio(speed_factors=[0.9, 1.1])])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_gives_what_reading_gives(make, num_workers):
    loader = Loader(
        make(), order=SeqOrder("laplace:.2"), batching=Batching(batch_size=4000, max_seqs=3), num_workers=num_workers
    )
    for epoch in (1, 2):
        dataset = make().at_epoch(epoch)
        examples = dataset.read(range(len(dataset)))
        found = contents(loader, epoch)
        assert found.keys() == set(examples.seq_tags)
        for i, tag in enumerate(examples.seq_tags):
            for name, arrays in examples.streams.items():
                np.testing.assert_array_equal(
                    found[tag][name], arrays[i] if arrays[i].dtype.kind != "U" else str(arrays[i])
                )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unknown_lengths_through_a_stream(num_workers):
    """Features whose lengths are drawn: read, ordered and batched as they come."""
    source = audio(random_permute={"rnd_zoom_switch": 1.0, "rnd_stretch_switch": 0, "rnd_pitch_switch": 0})
    stream = PostprocessingStream(source, LaplaceOrdering(2), num_shards=2)
    loader = StreamLoader(stream, batching=Batching(max_seqs=3), num_workers=num_workers)
    dataset = source.at_epoch(2)
    examples = dataset.read(range(len(dataset)))
    expected = {
        tag: {
            name: arrays[i] if arrays[i].dtype.kind != "U" else str(arrays[i])
            for name, arrays in examples.streams.items()
        }
        for i, tag in enumerate(examples.seq_tags)
    }
    check_same(contents(loader, 2), expected)
