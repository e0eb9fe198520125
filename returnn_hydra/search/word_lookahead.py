"""A word n-gram model as a scorer of the characters that spell the words.

Legend: V labels, W words, S nodes of the tree of spellings.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from returnn_hydra.search.ngram import BEGIN, END, UNKNOWN, ArpaModel, Context, read_arpa
from returnn_hydra.search.table_scorer import TableScorer

NOWHERE = -1
"""Node of spellings that are no beginning of a word."""


class WordNgrams:
    """What the configuration says of a word model in a search over characters (see `WordLookahead`).

    Arguments:
        file: ARPA file over words.
        separator: label between words.
    """

    def __init__(self, file: str | Path, separator: str = " ") -> None:
        self.file, self.separator = file, separator


class Place(NamedTuple):
    """Where a history stands: behind these words, in the middle of the next one."""

    words: Context | None
    """Context of the n-gram model; None: nothing has been fed yet."""
    node: int
    """Node of the tree of spellings; 0: the next word has not begun."""
    first: bool = False
    """Nothing stands behind <s> yet."""


class WordLookahead(TableScorer):
    """p(next label | labels before) by a word model: of the words that begin as spelled so far, the share that go on
    with this label (Hori et al. 2018, "End-to-end speech recognition with word-based RNN language models", section 3).

    The scores of the labels of a sentence of known words, with its end, add up to the score of the word model. Other
    spellings have the probability 0; behind one the model goes on without context.

    Arguments:
        model: the word n-gram model, or the path of its ARPA file.
        labels: the names of the V labels of the search; each word of the model is spelled with one label for each
            character.
        separator: label between words.
        bos, eos: labels that stand for <s> and </s>; they may be the same one.

    Raises:
        ValueError: a word that can't be spelled with the labels, or no label `separator`.
    """

    def __init__(
        self, model: ArpaModel | str | Path, labels: Sequence[str], separator: str, bos: int, eos: int
    ) -> None:
        self.model = model if isinstance(model, ArpaModel) else read_arpa(model)
        if separator not in labels:
            raise ValueError(f"the separator {separator!r} between words is none of the {len(labels)} labels")
        self.separator, self.bos, self.eos = labels.index(separator), bos, eos
        self.words = sorted(word for word in self.model.log_probs[()] if word not in (BEGIN, END, UNKNOWN))
        ids = {label: i for i, label in enumerate(labels) if i not in (bos, eos, self.separator)}
        self._children: list[dict[int, int]] = [{}]
        self._word_of: list[int | None] = [None]
        paths = [self._plant(index, word, ids) for index, word in enumerate(self.words)]
        self._below = np.zeros((len(self._children), len(self.words)))  # (S, W): 1 for words below a node
        for index, path in enumerate(paths):
            self._below[path, index] = 1.0
        self._known: dict[Context, tuple[np.ndarray, float]] = {}
        super().__init__(len(labels), start=Place(None, 0))

    def follow(self, history: Hashable, label: int) -> Place:
        assert isinstance(history, Place)
        if history.words is None:
            return Place(self.model.known_context((BEGIN,)), 0, first=True)
        if label != self.separator:
            known = history.node != NOWHERE
            return Place(history.words, self._children[history.node].get(label, NOWHERE) if known else NOWHERE)
        word = self._word_of[history.node] if history.node > 0 else None
        return Place(() if word is None else self.model.known_context((*history.words, self.words[word])), 0)

    def row(self, history: Hashable) -> Tensor:
        assert isinstance(history, Place)
        row = np.zeros(self.vocab_size)
        if history.words is not None and history.node != NOWHERE:
            masses, end = self._masses(history.words)
            total = masses[history.node]
            if history.node == 0:
                total = 1.0 if history.first else 1.0 - end
            for label, child in self._children[history.node].items():
                row[label] = masses[child] / total
            word = self._word_of[history.node]
            if word is not None:
                self._end_of_word(row, history.words, word, total)
            if history.first:
                row[self.eos] = end
        with np.errstate(divide="ignore"):
            return torch.from_numpy(np.log(row)).float()

    def _end_of_word(self, row: np.ndarray, context: Context, word: int, total: float) -> None:
        """What of the `total` probability of a node belongs to the word that is complete there."""
        here = math.exp(self.model.log_prob(self.words[word], context)) / total
        _, end = self._masses(self.model.known_context((*context, self.words[word])))
        row[self.separator], row[self.eos] = here * (1.0 - end), here * end

    def _masses(self, context: Context) -> tuple[np.ndarray, float]:
        """Behind a context: the probability of all words below each node, (S,), and of the end."""
        found = self._known.get(context)
        if found is None:
            probs = np.array([math.exp(self.model.log_prob(word, context)) for word in self.words])
            found = self._known[context] = (self._below @ probs, math.exp(self.model.log_prob(END, context)))
        return found

    def _plant(self, index: int, word: str, ids: dict[str, int]) -> list[int]:
        """Add a word to the tree: the nodes that lead to it."""
        node, path = 0, [0]
        for char in word:
            if char not in ids:
                raise ValueError(f"the word {word!r} of the n-gram model can't be spelled: {char!r} is no label")
            if ids[char] not in self._children[node]:
                self._children[node][ids[char]] = len(self._children)
                self._children.append({})
                self._word_of.append(None)
            node = self._children[node][ids[char]]
            path.append(node)
        self._word_of[node] = index
        return path
