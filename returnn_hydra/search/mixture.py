"""Interpolation of language models for a search.

Legend: V labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from returnn_hydra.search.scorer import Encoded, LabelScorer, State


class Mixture:
    """What the configuration says of an interpolated language model.

    Arguments:
        models: trained language models, ARPA files, or `WordNgrams`.
        weights: of each model, with the sum 1.

    Raises:
        ValueError: other weights.
    """

    def __init__(self, models: Sequence[Any], weights: Sequence[float]) -> None:
        if len(models) != len(weights) or min(weights, default=0.0) <= 0 or abs(sum(weights) - 1.0) > 1e-6:
            raise ValueError(
                f"weights={list(weights)}: expected {len(models)} positive numbers, one per model, with the sum 1"
            )
        self.models, self.weights = list(models), list(weights)


class MixtureScorer:
    """Linear interpolation: p(label) = sum over scorers of weight * p(label).

    A label is impossible only if it is so for all.

    Arguments:
        scorers: language models.
        weights: one for each, positive, with the sum 1.

    Raises:
        ValueError: different vocabularies.
    """

    max_score = 0.0

    def __init__(self, scorers: Sequence[LabelScorer], weights: Sequence[float]) -> None:
        sizes = [scorer.vocab_size for scorer in scorers]
        if len(set(sizes)) != 1:
            raise ValueError(f"the models of a mixture must have one vocabulary, but their sizes are {sizes}")
        self.scorers = list(scorers)
        self.log_weights = [math.log(weight) for weight in weights]
        self.vocab_size = sizes[0]

    def initial_state(self, encoded: Encoded) -> State:
        return [scorer.initial_state(encoded) for scorer in self.scorers]

    def score(self, labels: Tensor, state: State) -> tuple[Tensor, State]:
        found = [scorer.score(labels, part) for scorer, part in zip(self.scorers, state, strict=True)]
        weighted = [log_probs + weight for (log_probs, _), weight in zip(found, self.log_weights, strict=True)]
        return torch.stack(weighted).logsumexp(0), [part for _, part in found]

    def select(self, state: State, parents: Tensor) -> State:
        return [scorer.select(part, parents) for scorer, part in zip(self.scorers, state, strict=True)]

    def keep(self, state: State, seqs: Tensor) -> State:
        return [scorer.keep(part, seqs) for scorer, part in zip(self.scorers, state, strict=True)]

    def concat(self, states: list[State]) -> State:
        parts = zip(*states, strict=True)
        return [scorer.concat(list(part)) for scorer, part in zip(self.scorers, parts, strict=True)]
