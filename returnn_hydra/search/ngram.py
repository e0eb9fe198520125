"""Backoff n-gram models from ARPA files, as scorers.

Legend: B sequences, K hypotheses per sequence, V labels.
"""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from returnn_hydra.search.scorer import Encoded

BEGIN, END, UNKNOWN, SPACE = "<s>", "</s>", "<unk>", "<space>"
Context = tuple[str, ...]


@dataclass(frozen=True)
class ArpaModel:
    """An n-gram model: probabilities of words behind contexts, and what it costs to forget the first word of a
    context.
    """

    order: int
    log_probs: dict[Context, dict[str, float]]
    """Context to the natural log probabilities of the words listed behind it."""
    backoffs: dict[Context, float]
    """Natural log of the backoff weight of a context; 0 if it is not here."""

    def log_prob(self, word: str, context: Context) -> float:
        """ln p(word | context) by Katz's backoff; -inf for a word without a unigram."""
        context = context[len(context) - self.order + 1 :] if len(context) >= self.order else context
        weight = 0.0
        while True:
            found = self.log_probs.get(context, {}).get(word)
            if found is not None:
                return weight + found
            if not context:
                return -math.inf
            weight += self.backoffs.get(context, 0.0)
            context = context[1:]


def read_arpa(path: str | Path) -> ArpaModel:
    """Read an ARPA file (base-10 logarithms); `.gz` is unpacked.

    Raises:
        ValueError: a line that is no n-gram, a section that holds another number of n-grams than \\data\\ says, or no
            \\end\\.
    """
    counts: dict[int, int] = {}
    log_probs: dict[Context, dict[str, float]] = {}
    backoffs: dict[Context, float] = {}
    found: dict[int, int] = {}
    section = 0
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        if match := re.fullmatch(r"\\(\d+)-grams:", line):
            section = int(match[1])
            found[section] = 0
        elif line == "\\end\\":
            _check_counts(path, counts, found)
            return ArpaModel(max(counts), log_probs, backoffs)
        elif section:
            context, word, log_prob, backoff = _ngram(line, section, where)
            log_probs.setdefault(context, {})[word] = log_prob
            if backoff is not None:
                backoffs[(*context, word)] = backoff
            found[section] += 1
        elif match := re.fullmatch(r"ngram\s+(\d+)\s*=\s*(\d+)", line):
            counts[int(match[1])] = int(match[2])
    raise ValueError(f"{path} is not a whole ARPA file: it has no \\end\\")


def _lines(path: str | Path) -> Iterator[tuple[int, str]]:
    open_file = gzip.open if str(path).endswith(".gz") else open
    with open_file(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line := line.strip():
                yield number, line


def _ngram(line: str, order: int, where: str) -> tuple[Context, str, float, float | None]:
    fields = line.split()
    try:
        log_prob = float(fields[0])
        backoff = float(fields[order + 1]) if len(fields) == order + 2 else None
    except ValueError:
        raise ValueError(f"{where}: {line!r} does not hold a log probability, {order} words and a weight") from None
    if len(fields) not in (order + 1, order + 2):
        raise ValueError(
            f"{where}: expected {order} words between a log probability and a backoff weight, got {line!r}"
        )
    ln10 = math.log(10)
    words = fields[1 : order + 1]
    return tuple(words[:-1]), words[-1], log_prob * ln10, None if backoff is None else backoff * ln10


def _check_counts(path: str | Path, counts: dict[int, int], found: dict[int, int]) -> None:
    if not counts:
        raise ValueError(f"{path} is not an ARPA file: \\data\\ announces no n-grams")
    for order, count in counts.items():
        if found.get(order, 0) != count:
            raise ValueError(f"{path}: \\data\\ announces {count} {order}-grams, but there are {found.get(order, 0)}")


class NgramScorer:
    """An n-gram model as a scorer.

    The rows of scores are computed when a context is met for the first time, and kept.

    Arguments:
        model: the model, or the path of an ARPA file.
        labels: the names of the V labels of the search; white space is looked up as <space>, as ARPA files can't hold
            it.
        bos, eos: labels that stand for <s> (in contexts) and </s> (as next label); they may be the same one. Without
            `eos` the model never scores </s>.

    Raises:
        ValueError: a label is not in the model, and the model has no <unk>.
    """

    max_score = 0.0

    @torch.inference_mode(False)  # the rows are filled later, maybe outside of that mode
    def __init__(self, model: ArpaModel | str | Path, labels: Sequence[str], bos: int, eos: int | None) -> None:
        self.model = model if isinstance(model, ArpaModel) else read_arpa(model)
        self.vocab_size = len(labels)
        labels = [label if label.strip() else SPACE for label in labels]
        words = self.model.log_probs.get((), {})
        unknown = [i for i, label in enumerate(labels) if label not in words and i not in (bos, eos)]
        if unknown and UNKNOWN not in words:
            raise ValueError(
                f"the n-gram model has no <unk>, and no unigram for {len(unknown)} of {len(labels)} labels, "
                f"e.g. {labels[unknown[0]]!r}"
            )
        self._history = [label if label in words else UNKNOWN for label in labels]
        self._next: list[str | None] = list(self._history)
        self._history[bos] = BEGIN
        self._next[bos] = None
        if eos is not None:
            self._next[eos] = END
        self._columns: dict[str, list[int]] = {}  # word -> its labels: several for <unk>
        for label, word in enumerate(self._next):
            if word is not None:
                self._columns.setdefault(word, []).append(label)
        self._contexts: list[Context] = []
        self._ids: dict[Context, int] = {}
        self._rows = torch.empty(0, self.vocab_size)
        self._id(())

    def initial_state(self, encoded: Encoded) -> Tensor:
        return torch.zeros(encoded.num_seqs, 1, dtype=torch.long)

    def score(self, labels: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        pairs = zip(state.flatten().tolist(), labels.flatten().tolist(), strict=True)
        ids = [self._id((*self._contexts[context], self._history[label])) for context, label in pairs]
        state = torch.tensor(ids).view(labels.shape)
        return self._rows[state].to(labels.device), state

    def select(self, state: Tensor, parents: Tensor) -> Tensor:
        return state.gather(1, parents.cpu())

    def keep(self, state: Tensor, seqs: Tensor) -> Tensor:
        return state[seqs.cpu()]

    def concat(self, states: list[Tensor]) -> Tensor:
        return torch.cat(states)

    def _id(self, context: Context) -> int:
        """The number of the longest end of this context that the model knows something about."""
        known, backoffs = self.model.log_probs, self.model.backoffs
        while context and (len(context) >= self.model.order or (context not in known and context not in backoffs)):
            context = context[1:]
        found = self._ids.get(context)
        return self._add(context) if found is None else found

    @torch.inference_mode(False)
    def _add(self, context: Context) -> int:
        row = torch.full((self.vocab_size,), -math.inf)
        if context:
            shorter = self._id(context[1:])  # before the rows are looked at: it may make room for more
            row = self._rows[shorter] + self.model.backoffs.get(context, 0.0)
        for word, log_prob in self.model.log_probs.get(context, {}).items():
            row[self._columns.get(word, [])] = log_prob
        number = self._ids[context] = len(self._contexts)
        self._contexts.append(context)
        if number >= len(self._rows):
            self._rows = torch.cat([self._rows, torch.empty(max(64, number), self.vocab_size)])
        self._rows[number] = row
        return number
