"""Padding and the checks of what comes in."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.collate import check_specs, collate
from returnn_hydra.data.dataset import DataError, Examples

DENSE = TensorSpec(dim=2)
SPARSE = TensorSpec(dim=5, sparse=True)


def examples(**streams):
    num = len(next(iter(streams.values())))
    return Examples([f"seq-{i}" for i in range(num)], {name: [*map(np.asarray, s)] for name, s in streams.items()})


def test_returnn():
    case = json.loads((Path(__file__).parent / "golden" / "batching.json").read_text())["collate"][0]
    lens = json.loads((Path(__file__).parent / "golden" / "batching.json").read_text())["seqs"][case["seqs"]]
    data = [np.repeat(np.arange(n, dtype=np.int32)[:, None], 2, 1) for n in lens["data"][: case["first_n"]]]
    classes = [np.arange(n, dtype=np.int32) for n in lens["classes"][: case["first_n"]]]
    specs = {"data": TensorSpec(dim=2, dtype="int32"), "classes": TensorSpec(dim=20, sparse=True)}
    batch = collate(examples(data=data, classes=classes), specs)
    for name in specs:
        assert batch[name].tolist() == case["result"][name]["values"]
        assert str(batch[name].dtype) == f"torch.{case['result'][name]['dtype']}"
        assert batch.lengths[name].tolist() == case["result"][f"{name}:seq_len"]["values"]
        assert batch.lengths[name].dtype == torch.int64
    assert batch.seq_tags == case["result"]["seq_tag"]["values"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=6))
def test_several_variable_axes(shapes):
    arrays = [np.random.RandomState(i).rand(a, 3, b).astype(np.float32) for i, (a, b) in enumerate(shapes)]
    batch = collate(examples(att=arrays), {"att": TensorSpec(shape=(None, 3, None))})
    assert batch["att"].shape == (len(shapes), max(1, *(a for a, _ in shapes)), 3, max(b for _, b in shapes))
    assert batch.lengths["att"].tolist() == [a for a, _ in shapes]
    for row, array in zip(batch["att"], arrays, strict=True):
        assert np.array_equal(row[: array.shape[0], :, : array.shape[2]], array)
        assert float(row.sum()) == pytest.approx(float(array.sum()), rel=1e-5)


def test_time_is_not_the_first_axis():
    batch = collate(examples(x=[np.ones((2, 3)), np.ones((2, 1))]), {"x": TensorSpec(shape=(2, None))})
    assert batch["x"].tolist() == [[[1, 1, 1], [1, 1, 1]], [[1, 0, 0], [1, 0, 0]]]
    assert batch.lengths["x"].tolist() == [3, 1]


@pytest.mark.parametrize(
    ("found", "asked", "expected"),
    [
        ("uint16", "uint16", torch.int32),
        ("uint32", "uint32", torch.int64),
        ("int8", "int32", torch.int32),
        ("int64", "int32", torch.int32),
        ("uint8", "uint8", torch.uint8),
        ("float64", "float32", torch.float32),
        ("float16", "float16", torch.float16),
        ("int16", "float32", torch.float32),
        ("bool", "bool", torch.bool),
    ],
)
def test_dtypes(found, asked, expected):
    spec = TensorSpec(shape=(None,), dtype=asked)
    batch = collate(examples(x=[np.array([1, 0, 1], found)]), {"x": spec})
    assert batch["x"].dtype == expected
    assert batch["x"].tolist() == [[1, 0, 1]]


def test_streams_without_time_axis_and_text():
    specs = {
        "speaker": TensorSpec(dim=9, shape=(), sparse=True),
        "text": TensorSpec(shape=(), dtype="string"),
        "words": TensorSpec(shape=(None,), dtype="string"),
    }
    words = [np.array(["a", "bcd"]), np.array(["ü"])]
    batch = collate(examples(speaker=[3, 8], text=["hällo", "x"], words=words), specs, epoch=4)
    assert batch["speaker"].tolist() == [3, 8]
    assert batch["text"].tolist() == ["hällo", "x"]
    assert batch["words"].tolist() == [["a", "bcd"], ["ü", ""]]
    assert {name: lengths.tolist() for name, lengths in batch.lengths.items()} == {"words": [2, 1]}
    assert batch.epoch == 4


def test_chunks():
    data = [np.arange(10, dtype=np.float32)[:, None].repeat(2, 1)] * 2
    starts, ends = {"data": np.array([0, 6])}, {"data": np.array([4, 10])}
    batch = collate(examples(data=data, classes=[[1], [2]]), {"data": DENSE, "classes": SPARSE}, 1, starts, ends)
    assert batch["data"][:, :, 0].tolist() == [[0, 1, 2, 3], [6, 7, 8, 9]]
    assert batch["classes"].tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("spec", "wrong", "words"),
    [
        (DENSE, np.zeros((3, 4), np.float32), "'seq-1', stream 'x': shape (3, 4), expected (any, 2)"),
        (DENSE, np.zeros(3, np.float32), "shape (3,), expected (any, 2)"),
        (SPARSE, np.array([0, 5, 1], np.int32), "'seq-1', stream 'x': label 5 at (1,), expected 0 to 4 (dim=5)"),
        (SPARSE, np.array([0, -1], np.int32), "label -1 at (1,)"),
        (SPARSE, np.array([0.5], np.float32), "values of type float32, expected int32"),
        (TensorSpec(shape=(None,), dtype="int8"), np.array([1, 300]), "values from 1 to 300 do not fit into int8"),
        (TensorSpec(shape=(), dtype="string"), np.array(3), "values of type int64, expected string"),
        (DENSE, np.array([["a", "b"]]), "values of type <U1, expected float32"),
    ],
)
def test_wrong_sequence(spec, wrong, words):
    right = {DENSE: np.zeros((2, 2)), SPARSE: np.array([1])}.get(spec)
    if right is None:
        right = np.array("x") if spec.dtype == "string" else np.array([1])
    with pytest.raises(DataError) as error:
        collate(examples(x=[right, wrong]), {"x": spec})
    assert words in str(error.value)


def test_not_a_number():
    data = [np.zeros((2, 2)), np.array([[0, 1], [2, np.nan]]), np.zeros((1, 2))]
    assert collate(examples(data=data), {"data": DENSE}).num_seqs == 3
    with pytest.raises(DataError, match=r"'seq-1', stream 'data': nan at \(1, 1\)"):
        collate(examples(data=data), {"data": DENSE}, check_finite=True)


def test_same_length_as():
    specs = {"data": DENSE, "classes": TensorSpec(dim=5, sparse=True, same_length_as="data")}
    right = examples(data=[np.zeros((2, 2))] * 2, classes=[[1, 2], [3, 4]])
    assert collate(right, specs).lengths["classes"].tolist() == [2, 2]
    wrong = examples(data=[np.zeros((2, 2))] * 2, classes=[[1, 2], [3]])
    with pytest.raises(DataError, match="'seq-1', stream 'classes': 1 frames, and 2 in 'data'"):
        collate(wrong, specs)


def test_missing_stream():
    with pytest.raises(DataError, match=r"'classes': the data has no such stream .it has: data"):
        collate(examples(data=[np.zeros((2, 2))]), {"data": DENSE, "classes": SPARSE})


@pytest.mark.parametrize(
    ("spec", "found", "words"),
    [
        (TensorSpec(dim=3), DENSE, "has the shape (any, 2), expected (any, 3)"),
        (TensorSpec(dim=4, sparse=True), SPARSE, "has 5 classes, expected at most 4"),
        (SPARSE, TensorSpec(shape=(None,)), "has values of type float32, expected int32"),
        (TensorSpec(shape=(), dtype="string"), TensorSpec(shape=()), "expected string"),
        (TensorSpec(dim=2, same_length_as="y"), DENSE, "same_length_as='y' is no stream"),
    ],
)
def test_wrong_specs(spec, found, words):
    with pytest.raises(DataError) as error:
        check_specs({"x": spec}, {"x": found})
    assert words in str(error.value)
    with pytest.raises(DataError, match="'z': the data set has no such stream"):
        check_specs({"z": spec}, {"x": found})


def test_right_specs():
    check_specs(
        {"x": TensorSpec(dim=9, sparse=True), "y": DENSE}, {"x": SPARSE, "y": TensorSpec(dim=2, dtype="float64")}
    )
