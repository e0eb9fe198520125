"""What a search asks for the scores of the next label, and the log-linear combination of several answers.

Legend: B sequences, K hypotheses per sequence (beam), V labels, T encoder frames, F encoder features. States hold the
rows of all hypotheses, sequence by sequence: hypothesis k of sequence b is row b * K + k.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

State = Any


@dataclass(frozen=True)
class Encoded:
    """What the scorers of a search look at: the encoder's outputs for a batch of sequences."""

    lengths: Tensor
    """Encoder frames, (B,) int64."""
    encoder: Tensor | None = None
    """(B, T, F); scorers without an encoder (language models) do without it."""
    ctc_log_probs: Tensor | None = None
    """(B, T, C): log probabilities of the CTC classes, blank included."""

    @property
    def num_seqs(self) -> int:
        return len(self.lengths)

    @property
    def device(self) -> torch.device:
        return self.lengths.device


class LabelScorer(Protocol):
    """Scores of the next label, for hypotheses of equally many labels.

    A state belongs to B * K hypotheses; `score` feeds the last label of each and returns the scores of every possible
    next one.
    """

    vocab_size: int
    """V: number of labels, the end-of-sequence label included."""

    @property
    def max_score(self) -> float:
        """Upper limit of any score: 0 for log probabilities. A search may stop early because of it."""

    def initial_state(self, encoded: Encoded) -> State:
        """The state of one empty hypothesis (K = 1) for each sequence."""

    def score(self, labels: Tensor, state: State) -> tuple[Tensor, State]:
        """Feed the last labels (B, K); in the first call these are the begin-of-sequence label.

        Returns:
            log_probs (B, K, V) of the next label, and the state behind the given labels.
        """

    def select(self, state: State, parents: Tensor) -> State:
        """The state of new hypotheses, each grown from hypothesis `parents` (B, K') of its sequence."""

    def keep(self, state: State, seqs: Tensor) -> State:
        """The state of these sequences (B',) only."""

    def concat(self, states: list[State]) -> State:
        """The state of the sequences of all `states`, whose hypotheses have equally many labels."""


def map_tensors(function: Callable[[Tensor], Tensor], state: State) -> State:
    """`function` applied to every tensor of a state made of mappings, lists and tuples; None stays.

    Raises:
        TypeError: the state holds something else, which can't be selected by hypothesis.
    """
    if state is None:
        return None
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, Mapping):
        return {key: map_tensors(function, value) for key, value in state.items()}
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*(map_tensors(function, value) for value in state))
    if isinstance(state, list | tuple):
        return type(state)(map_tensors(function, value) for value in state)
    raise TypeError(
        f"a search state may hold tensors (first axis: hypotheses) in mappings, lists and tuples, "
        f"not {type(state).__name__}"
    )


def tensors_of(state: State) -> list[Tensor]:
    """Every tensor of a state."""
    found: list[Tensor] = []
    map_tensors(lambda tensor: found.append(tensor) or tensor, state)  # type: ignore[func-returns-value]
    return found


def concat_tensors(states: list[State]) -> State:
    """One state with the rows of all `states`, which must be built alike."""
    columns = [iter(tensors_of(state)) for state in states]
    return map_tensors(lambda _: torch.cat([next(column) for column in columns]), states[0])


def take_rows(state: State, rows: Tensor) -> State:
    """These rows of every tensor of a state."""
    return map_tensors(lambda tensor: tensor.index_select(0, rows), state)


def put_rows(state: State, rows: Tensor, new: State) -> State:
    """`state` with these rows replaced by those of `new`."""
    news = iter(tensors_of(new))
    return map_tensors(lambda tensor: tensor.index_copy(0, rows, next(news)), state)


def rows_of(parents: Tensor, beam: int) -> Tensor:
    """Rows (B * K',) in a state of `beam` hypotheses per sequence, for parents (B, K') within each sequence."""
    first = torch.arange(len(parents), device=parents.device)[:, None] * beam
    return (first + parents).flatten()


class CombinedScorer:
    """Log-linear combination: score(label) = sum over scorers of scale * log p(label).

    A scale of 0 leaves its scorer out. What a scorer with a negative scale (an internal language model that is
    subtracted) holds for impossible stays impossible.

    Raises:
        ValueError: a scale without a scorer or the reverse, or scorers of different vocabularies.
    """

    def __init__(self, scorers: Mapping[str, LabelScorer], scales: Mapping[str, float]) -> None:
        check_names(scales, scorers, "search scale", "scorer")
        check_names(scorers, scales, "scorer", "search scale")
        self.scorers = {name: scorer for name, scorer in scorers.items() if scales[name] != 0}
        self.scales = {name: float(scales[name]) for name in self.scorers}
        sizes = {name: scorer.vocab_size for name, scorer in self.scorers.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"the scorers of a search must have one vocabulary, but their sizes are {sizes}")
        self.vocab_size = next(iter(sizes.values()))

    @property
    def max_score(self) -> float:
        """Without an upper limit (inf) as soon as a scorer is subtracted."""
        if any(scale < 0 for scale in self.scales.values()):
            return float("inf")
        return sum(scale * self.scorers[name].max_score for name, scale in self.scales.items())

    def initial_state(self, encoded: Encoded) -> State:
        return {name: scorer.initial_state(encoded) for name, scorer in self.scorers.items()}

    def score(self, labels: Tensor, state: State) -> tuple[Tensor, State]:
        total: Tensor | None = None
        new_state = {}
        for name, scorer in self.scorers.items():
            log_probs, new_state[name] = scorer.score(labels, state[name])
            scale = self.scales[name]
            scaled = log_probs.double() * scale
            if scale < 0:
                scaled = scaled.masked_fill(log_probs == -torch.inf, -torch.inf)
            total = scaled if total is None else total + scaled
        assert total is not None
        return total, new_state

    def select(self, state: State, parents: Tensor) -> State:
        return {name: scorer.select(state[name], parents) for name, scorer in self.scorers.items()}

    def keep(self, state: State, seqs: Tensor) -> State:
        return {name: scorer.keep(state[name], seqs) for name, scorer in self.scorers.items()}

    def concat(self, states: list[State]) -> State:
        return {name: scorer.concat([state[name] for state in states]) for name, scorer in self.scorers.items()}


def check_names(names: Iterable[str], known: Iterable[str], what: str, where: str) -> None:
    """Raise ValueError, with the nearest right name, for the first of `names` that is not `known`."""
    choices = list(known)
    for name in names:
        if name not in choices:
            near = difflib.get_close_matches(name, choices, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{what} {name!r} has no {where}; there are {', '.join(choices) or 'none'}{hint}")
