"""Backoff n-gram models from ARPA files, as scorers.

Legend: V labels.
"""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from returnn_hydra.search.table_scorer import TableScorer

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

    def known_context(self, context: Context) -> Context:
        """The longest end of a context that the model tells from shorter ones."""
        while context and (
            len(context) >= self.order or (context not in self.log_probs and context not in self.backoffs)
        ):
            context = context[1:]
        return context


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


class NgramScorer(TableScorer):
    """An n-gram model as a scorer.

    Arguments:
        model: the model, or the path of an ARPA file.
        labels: the names of the V labels of the search; white space is looked up as <space>, as ARPA files can't hold
            it.
        bos, eos: labels that stand for <s> (in contexts) and </s> (as next label); they may be the same one. Without
            `eos` the model never scores </s>.

    Raises:
        ValueError: a label is not in the model, and the model has no <unk>.
    """

    def __init__(self, model: ArpaModel | str | Path, labels: Sequence[str], bos: int, eos: int | None) -> None:
        self.model = model if isinstance(model, ArpaModel) else read_arpa(model)
        labels = [label if label.strip() else SPACE for label in labels]
        words = self.model.log_probs.get((), {})
        unknown = [i for i, label in enumerate(labels) if label not in words and i not in (bos, eos)]
        if unknown and UNKNOWN not in words:
            raise ValueError(
                f"the n-gram model has no <unk>, and no unigram for {len(unknown)} of {len(labels)} labels, "
                f"e.g. {labels[unknown[0]]!r}"
            )
        self._history = [label if label in words else UNKNOWN for label in labels]
        following: list[str | None] = list(self._history)
        self._history[bos] = BEGIN
        following[bos] = None
        if eos is not None:
            following[eos] = END
        self._columns: dict[str, list[int]] = {}  # word -> its labels: several for <unk>
        for label, word in enumerate(following):
            if word is not None:
                self._columns.setdefault(word, []).append(label)
        super().__init__(len(labels), start=())

    def follow(self, history: Hashable, label: int) -> Context:
        """The longest end of this context that the model knows something about."""
        assert isinstance(history, tuple)
        return self.model.known_context((*history, self._history[label]))

    def row(self, history: Hashable) -> Tensor:
        assert isinstance(history, tuple)
        row = torch.full((self.vocab_size,), -math.inf)
        if history:
            shorter = self.number(self.model.known_context(history[1:]))
            row = self.scores_of(shorter) + self.model.backoffs.get(history, 0.0)
        for word, log_prob in self.model.log_probs.get(history, {}).items():
            row[self._columns.get(word, [])] = log_prob
        return row
