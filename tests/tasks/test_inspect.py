"""The histogram of lengths: bins of whole frames, the same number in each."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.vocab import CharacterVocabulary
from returnn_hydra.tasks.inspect import bin_edges, first_values, histogram


@given(st.lists(st.integers(0, 5000), min_size=1), st.integers(1, 60))
def test_bins(lengths, most_bins):
    edges = bin_edges(np.array(lengths), most_bins)
    widths = np.diff(edges)
    assert 1 <= len(widths) <= most_bins
    assert widths.min() == widths.max() >= 1
    assert edges[0] == min(lengths)
    assert edges[-2] <= max(lengths) < edges[-1]
    assert len(widths) == most_bins or (len(widths) + 1) * (widths[0] - 1) <= max(lengths) + 1 - min(lengths)


def test_text():
    """Every length is in the line that names it."""
    assert histogram(np.array([7, 7, 9, 10, 12]), 2) == [
        "  lengths: 7 to 12, mean 9.0",
        f"           7 ..        9 {'#' * 40} 3",
        f"          10 ..       12 {'#' * 27}{' ' * 13} 2",
    ]
    assert histogram(np.array([5]))[1:] == [f"           5 ..        5 {'#' * 40} 1"]


def test_values():
    labels = np.arange(10, dtype=np.int32) % 3
    vocab = CharacterVocabulary(labels=["a", "b", " "])
    assert first_values(labels, TensorSpec(vocab=vocab)) == "(10,) int32: 0 1 2 0 1 2 0 1 ... = 'ab ab ab a'"
    assert first_values(labels[:2], TensorSpec(dim=3, sparse=True)) == "(2,) int32: 0 1"
    assert first_values(np.float32([[0.5, 1 / 3]]), TensorSpec(dim=2)) == "(1, 2) float32: 0.5 0.333"
    assert first_values(np.array("Go"), TensorSpec(shape=(), dtype="string")) == "() text: Go"
