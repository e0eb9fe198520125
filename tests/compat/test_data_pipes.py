"""returnn.torch.data.pipeline and NumbersDict against recorded numbers."""

import json
from pathlib import Path

import numpy as np
import pytest

from returnn_hydra.compat.shim.numbers_dict import NumbersDict
from returnn_hydra.compat.shim.torch_pipeline import BatchingIterDataPipe

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden" / "batching.json").read_text())
OTHERS = {"seqs", "batches", "batch_size", "max_seqs"}
CASES = [case for case in GOLDEN["torch_cases"] if case.keys() == OTHERS]
CHANGING = {
    "batch_size": lambda *, epoch_continuous, **_: 100 if epoch_continuous < 0.5 else 300,
    "max_seqs": lambda *, seq_idx, **_: 2 if seq_idx < 5 else 4,
}


def sequences(name):
    lengths = GOLDEN["seqs"][name]
    for index, (data, classes) in enumerate(zip(*lengths.values(), strict=True)):
        about = {"seq_idx": np.array(index), "epoch": np.array(1), "num_seqs": np.array(len(lengths["data"]))}
        yield {"data": np.zeros((data, 2)), "classes": np.zeros(classes), "complete_frac": np.array(-1.0), **about}


@pytest.mark.parametrize("case", CASES + GOLDEN["torch_dynamic"], ids=lambda case: str({**case, "batches": ...}))
def test_batches(case):
    limits = CHANGING if isinstance(case["batch_size"], str) else {k: case[k] for k in ("batch_size", "max_seqs")}
    batches = BatchingIterDataPipe(sequences(case["seqs"]), **limits)
    assert [[int(sequence["seq_idx"]) for sequence in batch] for batch in batches] == case["batches"]


def test_packed():
    lengths = [
        [len(s["data"]) for s in batch] for batch in BatchingIterDataPipe(sequences("A"), 60, packed_batch_size=30)
    ]
    assert lengths == [[10, 12], [50], [49], [48], [5], [100], [3, 7], [30]]


def test_numbers():
    a, b = NumbersDict({"x": 4, "y": 3}), NumbersDict({"y": 5, "z": 2})
    assert (a * b).dict == {"x": 4, "y": 15, "z": 2}  # what one side lacks is 1 in products,
    assert (a - b).dict == {"x": 4, "y": -2, "z": -2}  # 0 in sums
    assert (1 - a).dict == {"x": -3, "y": -2}
    assert NumbersDict.max([NumbersDict(0), a, b]).items() == {"x": 4, "y": 5, "z": 2}.items()
    assert NumbersDict.min([a, b]).max_value() == 4
    assert not a.any_compare(b, lambda mine, other: mine > other)
    assert a.any_compare(NumbersDict(3), lambda mine, other: mine > other)
    assert a == NumbersDict({"y": 3, "x": 4})
    assert a != b
    a += 1
    assert a.dict == {"x": 5, "y": 4}
    assert a.copy_like(b).dict == {"y": 4}
    assert NumbersDict(7)["anything"] == 7
    assert repr(NumbersDict({"x": 1}, None)) == "NumbersDict({'x': 1})"
    with pytest.raises(TypeError, match="keys"):
        list(a)
