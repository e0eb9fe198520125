"""The step of `choice` layers against plain Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from returnn_hydra.network.rec.search import best_successors, scores_to_combine


def combined_scores(*tensors: Any, prob_scale: float = 1.0, base_scale: float = 1.0, **options: Any) -> torch.Tensor:
    base, new = scores_to_combine(*tensors, **options)
    return base * base_scale + new * prob_scale


def test_ended_hypotheses_go_on_with_label_0() -> None:
    base = torch.tensor([[-1.0, -2.0]])
    log_probs = torch.tensor([[[-5.0, -0.1, -0.2], [-1.0, -0.5, -3.0]]])
    ended = torch.tensor([[True, False]])
    scores = combined_scores(base, log_probs, 2, ended, length_normalization=False)
    parents, labels, best = best_successors(scores, 3)
    assert labels.tolist() == [[0, 1, 0]]
    assert parents.tolist() == [[0, 1, 1]]
    assert best[0].tolist() == pytest.approx([-1.0, -2.5, -3.0])


def test_scores_of_ended_hypotheses_grow() -> None:
    base = torch.tensor([[-1.0, -2.0]])
    ended = torch.tensor([[True, False]])
    scores = combined_scores(base, torch.full((1, 2, 3), -0.5), 3, ended, exponent=0.5)
    assert float(scores.max()) == pytest.approx(-math.sqrt(4 / 3))


def test_scales_and_missing_successors() -> None:
    scores = combined_scores(torch.tensor([[-1.0]]), torch.tensor([[[-2.0, -1.0]]]), 0, prob_scale=0.5, base_scale=2.0)
    parents, labels, best = best_successors(scores, 4)
    assert parents[0, :2].tolist() == [0, 0]
    assert labels[0, :2].tolist() == [1, 0]
    assert best[0].tolist() == [-2.5, -3.0, -math.inf, -math.inf]


def test_first_of_equal_successors() -> None:
    parents, labels, _ = best_successors(torch.zeros(2, 3, 50), 4)
    assert parents.tolist() == [[0] * 4] * 2
    assert labels.tolist() == [[0, 1, 2, 3]] * 2


def test_gold_successor_takes_the_last_place() -> None:
    scores = torch.tensor([[[-1.0, -2.0, -3.0], [-0.5, -4.0, -5.0]]])
    parents, labels, best = best_successors(scores, 2, gold=torch.tensor([2]))
    assert (parents.tolist(), labels.tolist(), best.tolist()) == ([[1, 1]], [[0, 2]], [[-0.5, -5.0]])
    _, twice, _ = best_successors(scores, 2, gold=torch.tensor([0]))
    assert twice.tolist() == [[0, 0]]
    parents, labels, _ = best_successors(scores, 2, gold=torch.tensor([0]), exclusive=True)
    assert (parents.tolist(), labels.tolist()) == ([[0, 1]], [[0, 0]])


@pytest.mark.parametrize("exponent", [1.0, 0.6])
def test_one_division_at_the_end_divides_by_the_own_length(exponent: float) -> None:
    """Running the steps to the end gives sum / n (n labels with the end) times the same number for all hypotheses;
    label scores do not depend on the history here.
    """
    torch.manual_seed(0)
    tables = (2 * torch.randn(6, 4)).log_softmax(-1)  # (step, label)
    scores, history, ended = torch.zeros(1, 1), [[]], torch.zeros(1, 1, dtype=torch.bool)
    for step, table in enumerate(tables):
        log_probs = table.expand(1, scores.shape[1], 4)
        parents, labels, scores = best_successors(combined_scores(scores, log_probs, step, ended, exponent=exponent), 3)
        history = [history[p] + [label] for p, label in zip(parents[0].tolist(), labels[0].tolist(), strict=True)]
        ended = ended.gather(1, parents) | (labels == 0)
    lengths = [labels.index(0) if 0 in labels else len(labels) for labels in history]
    assert 0 < min(lengths) < max(lengths)
    for labels, length, score in zip(history, lengths, scores[0].tolist(), strict=True):
        own = min(length + 1, len(tables))
        total = sum(float(tables[step, label]) for step, label in enumerate(labels[:own]))
        assert score == pytest.approx(total * (len(tables) / own) ** exponent, rel=1e-5)
