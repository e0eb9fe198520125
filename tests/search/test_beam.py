"""The pure steps of a beam search against sorting, and RETURNN's choice semantics against plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from returnn_hydra.search.beam import best_extensions, choice_final_scores, choice_step, decide, top_k


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


def test_choice_keeps_ended_hypotheses_with_label_0() -> None:
    base = torch.tensor([[-1.0, -2.0]])
    log_probs = torch.tensor([[[-5.0, -0.1, -0.2], [-1.0, -0.5, -3.0]]])
    ended = torch.tensor([[True, False]])
    choice = choice_step(base, log_probs, beam_size=3, step=2, ended=ended, length_normalization=False)
    assert choice.labels.tolist() == [[0, 1, 0]]
    assert choice.parents.tolist() == [[0, 1, 1]]
    assert choice.scores[0].tolist() == pytest.approx([-1.0, -2.5, -3.0])


def test_choice_stretches_the_score_of_ended_hypotheses() -> None:
    base = torch.tensor([[-1.0, -2.0]])
    log_probs = torch.full((1, 2, 3), -0.5)
    ended = torch.tensor([[True, False]])
    choice = choice_step(base, log_probs, beam_size=1, step=3, ended=ended, length_normalization_exponent=0.5)
    assert float(choice.scores) == pytest.approx(-math.sqrt(4 / 3))


def test_choice_scales_and_pads() -> None:
    choice = choice_step(
        torch.tensor([[-1.0]]),
        torch.tensor([[[-2.0, -1.0]]]),
        beam_size=4,
        prob_scale=0.5,
        base_beam_score_scale=2.0,
    )
    assert choice.labels[0, :2].tolist() == [1, 0]
    assert choice.scores[0].tolist() == [-2.5, -3.0, -math.inf, -math.inf]


@pytest.mark.parametrize("exponent", [1.0, 0.6])
def test_choice_search_divides_by_the_own_length(exponent: float) -> None:
    """Running the steps to the end gives sum / n (n labels with EOS) up to the scalar of the batch, for independent
    label scores.
    """
    torch.manual_seed(0)
    tables = (2 * torch.randn(6, 4)).log_softmax(-1)  # (step, label): no history, so every score can be recomputed
    scores, history, ended = torch.zeros(1, 1), [[]], torch.zeros(1, 1, dtype=torch.bool)
    for step, table in enumerate(tables):
        choice = choice_step(
            scores,
            table.expand(1, scores.shape[1], 4),
            beam_size=3,
            step=step,
            ended=ended,
            length_normalization_exponent=exponent,
        )
        history = [
            history[p] + [label] for p, label in zip(choice.parents[0].tolist(), choice.labels[0].tolist(), strict=True)
        ]
        ended = ended.gather(1, choice.parents) | (choice.labels == 0)
        scores = choice.scores
    lengths = torch.tensor([[labels.index(0) if 0 in labels else len(labels) for labels in history]])
    assert 0 < int(lengths.min()) < int(lengths.max())
    final = choice_final_scores(scores, lengths)
    longest = int(lengths.max()) + 1
    for labels, length, score in zip(history, lengths[0].tolist(), final[0].tolist(), strict=True):
        own = min(length + 1, len(tables))
        total = sum(float(tables[step, label]) for step, label in enumerate(labels[:own]))
        assert score == pytest.approx(total * (len(tables) / own) ** exponent / longest, rel=1e-5)


def test_decide() -> None:
    scores = torch.tensor([[-3.0, -2.0], [-1.0, -4.0]])
    assert decide(scores).tolist() == [1, 0]
    assert decide(scores, torch.tensor([[3, 1], [1, 8]])).tolist() == [0, 1]
