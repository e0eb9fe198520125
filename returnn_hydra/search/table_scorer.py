"""Scorers whose rows of scores are looked up: one row for each history that the model can tell from the others.

Legend: B sequences, K hypotheses per sequence, V labels.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from returnn_hydra.search.scorer import Encoded


class TableScorer:
    """The LabelScorer methods over `follow` and `row`, which a model defines for its histories.

    A history is any hashable object. The row of a history is computed when it is met for the first time, and kept; a
    search state is the number of a row, (B, K).

    Arguments:
        vocab_size: V.
        start: the history in front of the label that begins a sequence.
    """

    max_score = 0.0

    @torch.inference_mode(False)  # the rows are filled later, maybe outside of that mode
    def __init__(self, vocab_size: int, start: Hashable) -> None:
        self.vocab_size = vocab_size
        self._histories: list[Hashable] = []
        self._numbers: dict[Hashable, int] = {}
        self._rows = torch.empty(0, vocab_size)
        self._start = self.number(start)

    def follow(self, history: Hashable, label: int) -> Hashable:
        """The history behind one more label."""
        raise NotImplementedError

    def row(self, history: Hashable) -> Tensor:
        """Scores of the next label, (V,)."""
        raise NotImplementedError

    def number(self, history: Hashable) -> int:
        """The number of a history's row."""
        found = self._numbers.get(history)
        return self._add(history) if found is None else found

    def scores_of(self, number: int) -> Tensor:
        """The row with this number, (V,)."""
        return self._rows[number]

    def initial_state(self, encoded: Encoded) -> Tensor:
        return torch.full((encoded.num_seqs, 1), self._start, dtype=torch.long)

    def score(self, labels: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        pairs = zip(state.flatten().tolist(), labels.flatten().tolist(), strict=True)
        numbers = [self.number(self.follow(self._histories[number], label)) for number, label in pairs]
        state = torch.tensor(numbers).view(labels.shape)
        return self._rows[state].to(labels.device), state

    def select(self, state: Tensor, parents: Tensor) -> Tensor:
        return state.gather(1, parents.cpu())

    def keep(self, state: Tensor, seqs: Tensor) -> Tensor:
        return state[seqs.cpu()]

    def concat(self, states: list[Tensor]) -> Tensor:
        return torch.cat(states)

    @torch.inference_mode(False)
    def _add(self, history: Hashable) -> int:
        row = self.row(history)  # first: it may add rows of other histories
        number = self._numbers[history] = len(self._histories)
        self._histories.append(history)
        if number >= len(self._rows):
            self._rows = torch.cat([self._rows, torch.empty(max(64, number), self.vocab_size)])
        self._rows[number] = row
        return number
