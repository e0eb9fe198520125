"""Manifests: they come back as they were, and not one character can change unnoticed."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn_hydra.engine.errors import DamagedStateError
from returnn_hydra.engine.files import FileFacts
from returnn_hydra.engine.manifest import Manifest, Progress, check_json, seal, unseal

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
QUICK = settings(max_examples=200, derandomize=True, database=None, deadline=None)


@QUICK
@given(st.dictionaries(st.text(max_size=6).filter(lambda key: key != "sha256"), JSON, max_size=4))
def test_sealed_values_come_back(values):
    assert unseal(seal(values), "here") == values


@QUICK
@given(
    st.integers(1, 9999),
    st.none() | st.integers(0, 10**6),
    st.floats(0, 1),
    st.dictionaries(st.text(), JSON, max_size=3),
)
def test_manifests_come_back(epoch, batch, learning_rate, state):
    progress = Progress(epoch, batch, 7, learning_rate, state)
    manifest = Manifest("model.001", "run", progress, {"seed": 1}, {"model.001.pt": FileFacts(10, "ab")})
    assert Manifest.from_text(manifest.to_text(), "here") == manifest


TEXT = Manifest(
    "m.001", "run", Progress(1, None, 7, 0.1, {"a": [1.5, "x"]}), {"k": None}, {"m.001.pt": FileFacts(1, "a")}
).to_text()


@settings(max_examples=500, derandomize=True, database=None, deadline=None)
@given(st.integers(0, len(TEXT) - 1), st.characters(codec="utf8"))
def test_every_changed_character_is_noticed(at, character):
    changed = TEXT[:at] + character + TEXT[at + 1 :]
    if changed != TEXT:
        with pytest.raises(DamagedStateError, match="here: "):
            Manifest.from_text(changed, "here")


@pytest.mark.parametrize("length", range(0, len(TEXT), 7))
def test_every_truncation_is_noticed(length):
    with pytest.raises(DamagedStateError):
        Manifest.from_text(TEXT[:length], "here")


def test_spaces_and_doubled_keys_are_noticed():
    for changed in (TEXT + " ", TEXT.replace("{\n", '{\n "epoch": 2,\n', 1), "[]", "3", "[" * 100_000):
        with pytest.raises(DamagedStateError):
            Manifest.from_text(changed, "here")


@pytest.mark.parametrize(
    "change",
    [
        {"format": "returnn-hydra checkpoint 99"},
        {"finite": False},
        {"extra": 1},
        {"epoch": "three"},
        {"batch": [1]},
        {"files": ["a"]},
        {"files": {"a": {"bytes": 3}}},
        {"state": 5},
        {"learning_rate": None},
    ],
)
def test_a_sealed_text_that_is_no_manifest(change):
    values = {**unseal(TEXT, "here"), **change}
    with pytest.raises(DamagedStateError, match="here: no manifest"):
        Manifest.from_text(seal(values), "here")


def test_a_float_of_numpy_comes_back_as_a_float():
    assert unseal(seal({"a": np.float64(0.1)}), "here") == {"a": 0.1}


def test_bad_numbers_in_scores_survive():
    values = unseal(seal({"a": math.nan, "b": math.inf}), "here")
    assert math.isnan(values["a"])
    assert values["b"] == math.inf


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [{"b": (1, 2)}]}, r"state\.a\[0\]\.b: a tuple is no JSON type"),
        ({1: 2}, "key 1 is a int"),
        ({"a": {"b": {1}}}, r"state\.a\.b: a set"),
        ({"a": b"x"}, "a bytes"),
    ],
)
def test_what_json_would_change_is_refused(value, message):
    with pytest.raises(TypeError, match=message):
        check_json(value, "state")


def test_positions_are_ordered():
    order = [
        Progress(1, 0, 0, 0),
        Progress(1, 5, 0, 0),
        Progress(1, None, 0, 0),
        Progress(2, 0, 0, 0),
        Progress(2, None, 0, 0),
    ]
    assert [p.position for p in order] == sorted(p.position for p in reversed(order))


def test_a_manifest_is_json_for_everyone():
    assert json.loads(TEXT)["files"]["m.001.pt"]["bytes"] == 1
