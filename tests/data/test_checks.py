"""Arrays against their specs."""

import numpy as np
import pytest

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.arrays import StaticDataset
from returnn_hydra.data.checks import checked_array, specs_from_options, stream_spec
from returnn_hydra.data.dataset import DataError


@pytest.mark.parametrize(
    ("value", "spec", "dtype"),
    [
        (np.zeros((3, 2), "float64"), {"dim": 2}, "float32"),
        (np.zeros((3, 2), "int64"), {"dim": 2}, "float32"),
        ([[True, False]], {"dim": 2}, "float32"),
        (np.array([0, 255]), {"dim": 256, "sparse": True, "dtype": "uint8"}, "uint8"),
        (np.array([], "float64"), {"dim": 3, "sparse": True}, "int32"),
        (7, {"dim": 9, "sparse": True, "shape": []}, "int32"),
    ],
)
def test_casts_that_keep_the_values(value, spec, dtype):
    found = checked_array(value, TensorSpec(**spec), "here")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.asarray(value))


def test_text():
    spec = TensorSpec(shape=(), dtype="string")
    assert checked_array("a", spec, "here").dtype.kind == "U"
    assert str(checked_array(np.array("a", object), spec, "here")) == "a"


@pytest.mark.parametrize(
    ("value", "spec", "message"),
    [
        (np.zeros((3, 3)), {"dim": 2}, r"shape \(3, 3\), expected \(any, 2\)"),
        (np.zeros(3), {"dim": 2}, r"shape \(3,\), expected \(any, 2\)"),
        (np.array([0.5]), {"dim": 3, "sparse": True}, "dtype float64, expected int32"),
        (np.array([300]), {"dim": 900, "sparse": True, "dtype": "uint8"}, "value 300 does not fit uint8"),
        (np.array([0, 3]), {"dim": 3, "sparse": True}, r"class index 3, expected 0 \.\. 2"),
        (np.array([-1, 0]), {"dim": 3, "sparse": True}, "class index -1"),
        (np.array(["a"]), {"dim": 3, "sparse": True}, "dtype <U1, expected int32"),
        (3, {"shape": [], "dtype": "string"}, "expected text"),
    ],
)
def test_errors(value, spec, message):
    with pytest.raises(DataError, match=f"^here: .*{message}"):
        checked_array(value, TensorSpec(**spec), "here")


def test_specs_and_streams():
    with pytest.raises(DataError, match=r"stream .x.: .*dimm"):
        specs_from_options({"x": {"dimm": 3}})
    with pytest.raises(DataError, match="stream 'x': a stream needs"):
        specs_from_options({"x": {}})
    dataset = StaticDataset([{"data": [0.5]}])
    with pytest.raises(DataError, match=r"my set has no stream 'dat', did you mean 'data'\?"):
        stream_spec(dataset, "dat", "my set")


def test_static_data_without_specs():
    dataset = StaticDataset([{"data": np.zeros((2, 3)), "text": "a"}, {"data": np.ones((1, 3)), "text": "b"}])
    assert dataset.streams["data"].shape == (None, 3)
    assert dataset.streams["text"].dtype == "string"
    with pytest.raises(DataError, match="holds integers and needs a spec"):
        StaticDataset([{"classes": [1, 2]}])
    with pytest.raises(DataError, match="no data and no streams"):
        StaticDataset([])
    with pytest.raises(DataError, match="as many different tags"):
        StaticDataset([{"data": [0.5]}] * 2, seq_tags=["a", "a"])
