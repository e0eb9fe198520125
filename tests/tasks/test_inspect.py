"""The histogram of lengths: bins of whole frames, the same number in each."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from returnn_hydra.tasks.inspect import bin_edges, histogram


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
