"""Boundaries and edit distances of label sequences."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn_hydra.nn.labels import append, edit_distances, prepend


def test_boundaries():
    labels, lengths = torch.tensor([[1, 2, 3], [4, 0, 0], [0, 0, 0]]), torch.tensor([3, 1, 0])
    assert prepend(labels, 9).tolist() == [[9, 1, 2, 3], [9, 4, 0, 0], [9, 0, 0, 0]]
    assert append(labels, lengths, 9).tolist() == [[1, 2, 3, 9], [4, 9, 0, 0], [9, 0, 0, 0]]


def slow_distance(first: list[int], second: list[int]) -> int:
    """By recursion on the definition."""
    if not first or not second:
        return len(first) + len(second)
    if first[0] == second[0]:
        return slow_distance(first[1:], second[1:])
    shorter = (first[1:], second), (first, second[1:]), (first[1:], second[1:])
    return 1 + min(slow_distance(*pair) for pair in shorter)


SEQUENCE = st.lists(st.integers(0, 2), max_size=5)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(SEQUENCE, SEQUENCE), min_size=1, max_size=4))
def test_edit_distances(pairs):
    def pad(sequences: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        size = max(map(len, sequences))
        rows = [sequence + [0] * (size - len(sequence)) for sequence in sequences]
        return torch.tensor(rows).reshape(len(rows), size).long(), torch.tensor(list(map(len, sequences)))

    hyps, refs = pad([hyp for hyp, _ in pairs]), pad([ref for _, ref in pairs])
    assert edit_distances(*hyps, *refs).tolist() == [slow_distance(*pair) for pair in pairs]
