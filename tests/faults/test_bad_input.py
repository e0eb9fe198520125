"""Bad input ends a training before its first step, and the message says where: file, stream, sequence."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.hdf_writer import HDFWriter
from returnn_hydra.steps.cross_entropy import CrossEntropy

SPECS = {"data": TensorSpec(dim=3), "classes": TensorSpec(dim=4, sparse=True)}
LENGTHS = {"a": 5, "b": 7, "c": 4, "d": 6}
ARGUMENTS = (
    "task=train",
    "datasets=hdf",
    "datasets.train.source.files=x.hdf",
    "datasets.dev=null",
    "extern_data={data: {dim: 3}, classes: {dim: 4, sparse: true}}",
    "model.hidden_dim=4",
    "num_epochs=1",
    "name=x",
)


def write(path: Path) -> None:
    random = np.random.RandomState(1)
    with HDFWriter(path, SPECS) as writer:
        for tag, length in LENGTHS.items():
            labels = random.randint(4, size=length).astype("int32")
            writer.write(tag, {"data": random.rand(length, 3).astype("float32"), "classes": labels})


def edited(change):
    def make(path):
        write(path)
        with h5py.File(path, "r+") as file:
            change(file)

    return make


def replaced(name, array):
    def change(file):
        del file[name]
        file[name] = array

    return edited(change)


def changed(name, *places):
    """Values at places of a data set; written anew, since checksums would tell otherwise."""

    def change(file):
        array = file[name][()]
        attributes = dict(file[name].attrs)
        for index, value in places:
            array[index] = value
        del file[name]
        file[name] = array
        file[name].attrs.update(attributes)

    return edited(change)


def cut(fraction):
    def make(path):
        write(path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * fraction)])

    return make


def flipped(path):
    """One bit in the stored numbers: the checksum of the chunk tells."""
    write(path)
    with h5py.File(path) as file:
        place = file["inputs"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[place + 20] ^= 4
    path.write_bytes(data)


def linked(path):
    write(path)
    write(path.with_name("other.hdf"))
    with h5py.File(path, "r+") as file:
        del file["inputs"]
        file["inputs"] = h5py.ExternalLink("other.hdf", "inputs")


KINDS = {
    "no such file": (lambda path: None, ["x.hdf"]),
    "empty file": (lambda path: path.write_bytes(b""), ["x.hdf"]),
    "garbage": (lambda path: path.write_bytes(bytes(range(256)) * 9), ["x.hdf"]),
    "truncated": (cut(0.6), ["x.hdf"]),
    "another layout": (edited(lambda file: file.pop("seqLengths")), ["x.hdf", "seqLengths"]),
    "stream missing": (edited(lambda file: file["targets/data"].pop("classes")), ["classes"]),
    "wrong dimension": (replaced("inputs", np.zeros((22, 5), "float32")), ["data", "dim=3", "dim=5"]),
    "lengths too small": (replaced("seqLengths", [[5, 5], [7, 7], [4, 4], [5, 6]]), ["x.hdf", "'data'", "21", "22"]),
    "lengths too large": (replaced("seqLengths", [[5, 5], [7, 7], [4, 4], [6, 9]]), ["x.hdf", "'classes'", "25", "22"]),
    "negative length": (replaced("seqLengths", [[5, 5], [-7, 7], [18, 4], [6, 6]]), ["x.hdf", "'b'", "'data'", "-7"]),
    "tag twice": (replaced("seqTags", np.array([b"a", b"b", b"a", b"d"])), ["x.hdf", "'a'"]),
    "too few tags": (replaced("seqTags", np.array([b"a", b"b", b"c"])), ["x.hdf", "seqTags"]),
    "label out of range": (changed("targets/data/classes", (13, 9)), ["x.hdf", "'classes'", "'c'", "9"]),
    "negative label": (changed("targets/data/classes", (17, -1)), ["x.hdf", "'classes'", "'d'", "-1"]),
    "NaN": (changed("inputs", ((6, 1), np.nan)), ["x.hdf", "'data'", "'b'"]),
    "infinity": (changed("inputs", ((21, 0), np.inf)), ["x.hdf", "'data'", "'d'"]),
    "bit flip": (flipped, ["x.hdf", "'data'", "'a'"]),
    "link to another file": (linked, ["x.hdf", "inputs", "ExternalLink"]),
}
NEEDS_THE_VALUES = ("label out of range", "negative label", "NaN", "infinity", "bit flip")


def test_the_good_file_trains(command):
    write(Path("x.hdf"))
    assert command(*ARGUMENTS, "check_data=true") == 0
    assert list(Path("outputs/x/checkpoints").glob("model.001.pt"))


@pytest.mark.parametrize("kind", KINDS)
def test_found_before_the_first_step(command, capsys, monkeypatch, kind):
    steps = []
    monkeypatch.setattr(CrossEntropy, "__call__", lambda *_: steps.append(1))
    make, words = KINDS[kind]
    make(Path("x.hdf"))
    extra = ["check_data=true"] if kind in NEEDS_THE_VALUES else []
    assert command(*ARGUMENTS, *extra) == (2 if kind == "wrong dimension" else 65)
    last = capsys.readouterr().err.splitlines()[-1]
    assert all(word in last for word in words), last
    assert not steps
    assert not list(Path("outputs").rglob("*.pt"))


@pytest.mark.parametrize("kind", NEEDS_THE_VALUES)
def test_without_the_look_ahead_it_is_found_when_the_batch_is_read(command, capsys, kind):
    """Never later: no update is made with it."""
    make, words = KINDS[kind]
    make(Path("x.hdf"))
    wanted = 76 if kind in ("NaN", "infinity") else 65
    assert command(*ARGUMENTS) == wanted
    message = capsys.readouterr().err
    assert words[1 if kind == "bit flip" else 2].strip("'") in message
    assert not list(Path("outputs").rglob("model.*.pt"))
