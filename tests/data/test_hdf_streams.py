"""The streams layout: one data set for every sequence."""

import pickle

import h5py
import numpy as np
import pytest

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.hdf_streams import HDFStreamsDataset
from returnn_hydra.data.loader import Loader
from returnn_hydra.data.order import SeqOrder

TAGS = ["corpus/a/1", "corpus/a/2", "b"]


def write(path, tags=TAGS, seed=1, **changes):
    """Features, words and an alignment of every sequence; returns what they hold."""
    rng = np.random.RandomState(seed)
    held = {}
    with h5py.File(path, "w") as file:
        file["seq_names"] = np.array(tags, dtype=h5py.string_dtype())
        for name, parser in (("features", "feature_sequence"), ("words", "sparse"), ("states", "segment_alignment")):
            stream = file.create_group(f"streams/{name}")
            stream.attrs["parser"] = changes.get(name, parser)
            count = 3 if name == "features" else 6
            stream["feature_names"] = np.array([f"{name}{i}".encode() for i in range(count)])
        for tag in tags:
            spans = rng.randint(1, 4, rng.randint(1, 5))
            states = rng.randint(0, 6, len(spans))
            data = rng.randn(spans.sum(), 3).astype("float32")
            words = rng.randint(0, 6, rng.randint(0, 4)).astype("int64")
            stored = tag.replace("/", "\\")
            file[f"streams/features/data/{stored}"] = data
            file[f"streams/words/data/{stored}"] = words
            file[f"streams/states/data/{stored}"] = np.stack([states, spans], 1).astype("int32")
            held[tag] = {"data": data, "words": words, "states": np.repeat(states, spans)}
    return held


def assert_holds(dataset, held):
    examples = dataset.read(range(len(dataset)))
    assert examples.seq_tags == list(held)
    for name in ("data", "words", "states"):
        for array, tag in zip(examples.streams[name], held, strict=True):
            assert np.array_equal(array, held[tag][name])
        assert dataset.seq_lengths(name).tolist() == [len(seq[name]) for seq in held.values()]


def test_reads_what_is_there(tmp_path):
    held = write(tmp_path / "x.hdf")
    dataset = HDFStreamsDataset(tmp_path / "x.hdf", input_stream="features")
    assert dataset.streams == {
        "data": TensorSpec(dim=3),
        "states": TensorSpec(dim=6, sparse=True),
        "words": TensorSpec(dim=6, sparse=True),
    }
    assert dataset.labels["words"] == [f"words{i}" for i in range(6)]
    assert_holds(dataset, held)
    assert_holds(pickle.loads(pickle.dumps(dataset)), held)
    batch = next(Loader(dataset, order=SeqOrder("sorted")).epoch(1))
    assert batch.lengths["data"].tolist() == sorted(len(seq["data"]) for seq in held.values())


def test_several_files(tmp_path):
    held = {**write(tmp_path / "x.0.hdf"), **write(tmp_path / "x.1.hdf", ["c", "d"], 2)}
    assert_holds(HDFStreamsDataset(str(tmp_path / "x.*.hdf"), input_stream="features"), held)
    write(tmp_path / "x.2.hdf", ["d"])
    with pytest.raises(DataError, match="seq_tag 'd' comes twice"):
        HDFStreamsDataset(str(tmp_path / "x.*.hdf"))


def test_wrong_files(tmp_path):
    path = tmp_path / "x.hdf"
    write(path)
    with pytest.raises(DataError, match=r"input_stream='audio': no such stream .there is: features"):
        HDFStreamsDataset(path, input_stream="audio")
    with h5py.File(path, "r+") as file:
        del file["streams/words/data/b"]
    with pytest.raises(DataError, match=r"x.hdf: `b` is missing"):
        HDFStreamsDataset(path).read([2])
    write(path, words="feature_sequence")
    with pytest.raises(DataError, match=r"'words': sequence 'b' has the shape .*, expected .frames, features"):
        HDFStreamsDataset(path)
    write(path, words="other")
    with pytest.raises(DataError, match="parser 'other', expected one of feature_sequence"):
        HDFStreamsDataset(path)
    with h5py.File(path, "w") as file:
        file["inputs"] = [1.0]
    with pytest.raises(DataError, match="`streams` is missing"):
        HDFStreamsDataset(path)
