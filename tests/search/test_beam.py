"""The pure steps of a beam search against sorting."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from returnn_hydra.search.beam import best_extensions, gather_beams, top_k


@given(
    st.lists(st.lists(st.integers(-3, 3) | st.just(-math.inf), min_size=6, max_size=6), min_size=1, max_size=4),
    st.integers(1, 8),
)
def test_top_k_prefers_lower_indices(rows: list[list[float]], k: int) -> None:
    values, indices = top_k(torch.tensor(rows, dtype=torch.float), k)
    for row, found_values, found in zip(rows, values.tolist(), indices.tolist(), strict=True):
        expected = sorted(range(6), key=lambda i: (-row[i], i))[:k]
        assert found_values == [row[i] for i in expected]
        finite = [i for i in expected if row[i] > -math.inf]
        assert found[: len(finite)] == finite
        assert len(set(found)) == len(found)


def test_best_extensions_split_the_index() -> None:
    scores = torch.tensor([[[0.1, 0.9, 0.3], [0.8, 0.2, 0.85]]])
    labels, parents, values = best_extensions(scores, 3)
    assert labels.tolist() == [[1, 2, 0]]
    assert parents.tolist() == [[0, 1, 1]]
    assert values[0].tolist() == pytest.approx([0.9, 0.85, 0.8])


def test_gather_beams_follows_the_parents() -> None:
    values = torch.arange(12).view(2, 3, 2)
    parents = torch.tensor([[2, 2, 0, 1], [0, 1, 2, 0]])
    expected = [[values[seq, parent].tolist() for parent in row] for seq, row in enumerate(parents.tolist())]
    assert gather_beams(values, parents).tolist() == expected
    assert gather_beams(values[:, :, 0], parents).tolist() == [[pair[0] for pair in row] for row in expected]
