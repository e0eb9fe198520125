"""N-gram models asked for one word at a time, whose words need not be labels of a search.

ARPA files are read by `ngram.py`, binary files of KenLM by KenLM (extra `kenlm`); both give the same scores.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from returnn_hydra.search.kenlm_scorer import is_kenlm_binary, load_kenlm
from returnn_hydra.search.ngram import BEGIN, UNKNOWN, ArpaModel, read_arpa

UNKNOWN_SCORE = -100 * math.log(10)
"""ln p(<unk>) that KenLM gives to a model without <unk>."""


class WordModel(Protocol):
    """Scores of words behind a history, whose form only the model knows."""

    def begin(self) -> Any:
        """The history behind <s>."""

    def score(self, history: Any, word: str) -> tuple[float, Any]:
        """ln p(word | history), and the history behind the word; words that the model lacks count as <unk>."""


class ArpaWords:
    """A model that was read from an ARPA file."""

    def __init__(self, model: ArpaModel) -> None:
        self.words = {UNKNOWN: UNKNOWN_SCORE, **model.log_probs.get((), {})}
        self.model = replace(model, log_probs={**model.log_probs, (): self.words})

    def begin(self) -> tuple[str, ...]:
        return self.model.known_context((BEGIN,))

    def score(self, history: tuple[str, ...], word: str) -> tuple[float, tuple[str, ...]]:
        word = word if word in self.words else UNKNOWN
        return self.model.log_prob(word, history), self.model.known_context((*history, word))


class KenLMWords:
    """A model that KenLM has loaded.

    Raises:
        ImportError: KenLM is not installed.
        ValueError: KenLM can't read the file.
    """

    def __init__(self, path: str | Path) -> None:
        self._kenlm, self.model = load_kenlm(path)

    def begin(self) -> Any:
        state = self._kenlm.State()
        self.model.BeginSentenceWrite(state)
        return state

    def score(self, history: Any, word: str) -> tuple[float, Any]:
        after = self._kenlm.State()
        return self.model.BaseScore(history, word, after) * math.log(10), after


def word_model(path: str | Path) -> WordModel:
    """The model of an ARPA file (or `.gz` of it), or of a binary file of KenLM."""
    return KenLMWords(path) if is_kenlm_binary(path) else ArpaWords(read_arpa(path))


def text_score(model: WordModel, text: str) -> tuple[float, Any]:
    """ln p of the words of a text behind <s> (</s> counts only where the text has it), and the history behind them."""
    total, history = 0.0, model.begin()
    for word in text.split():
        score, history = model.score(history, word)
        total += score
    return total, history
