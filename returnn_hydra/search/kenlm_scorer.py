"""N-gram models read by KenLM (Heafield 2011, KenLM: Faster and Smaller Language Model Queries): its binary files, and
ARPA files in its memory layout. Needs the extra `kenlm`.

Legend: V labels.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from returnn_hydra.extras import require
from returnn_hydra.search.ngram import END, SPACE, UNKNOWN
from returnn_hydra.search.table_scorer import TableScorer

BINARY_MAGIC = b"mmap lm http://kheafield.com/code"
"""What a file of KenLM's build_binary begins with."""


def is_kenlm_binary(path: str | Path) -> bool:
    """Whether the file was written by KenLM's build_binary."""
    with open(path, "rb") as file:
        return file.read(len(BINARY_MAGIC)) == BINARY_MAGIC


def load_kenlm(path: str | Path) -> tuple[Any, Any]:
    """KenLM's module, and the model of a file.

    Raises:
        MissingExtra: KenLM is not installed.
        ValueError: KenLM can't read the file.
    """
    kenlm = require("kenlm", "kenlm", str(path))
    options = kenlm.Config()
    options.show_progress = False
    try:
        return kenlm, kenlm.LanguageModel(str(path), options)
    except OSError as error:
        raise ValueError(f"{path}: {error}") from error


class KenLMScorer(TableScorer):
    """An n-gram model in KenLM as a scorer; the same scores as `NgramScorer` on the same model.

    Arguments:
        path: a binary file of KenLM, or an ARPA file.
        labels: the names of the V labels of the search; white space is looked up as <space>.
        bos, eos: labels that stand for <s> (in contexts) and </s> (as next label); they may be the same one. Without
            `eos` the model never scores </s>.

    Raises:
        MissingExtra: KenLM is not installed.
        ValueError: KenLM can't read the file, or a label is not in the model, and the model has no <unk>.
    """

    def __init__(self, path: str | Path, labels: Sequence[str], bos: int, eos: int | None) -> None:
        self._kenlm, self.model = load_kenlm(path)
        self._bos = bos
        self._words: list[str | None] = [label if label.strip() else SPACE for label in labels]
        unknown = [word for i, word in enumerate(self._words) if word not in self.model and i not in (bos, eos)]
        if unknown and not self._has_unknown():
            raise ValueError(
                f"{path}: no <unk>, and no unigram for {len(unknown)} of {len(labels)} labels, e.g. {unknown[0]!r}"
            )
        self._words[bos] = None
        if eos is not None:
            self._words[eos] = END
        self._begin, self._nothing = self._kenlm.State(), self._kenlm.State()
        self.model.BeginSentenceWrite(self._begin)
        self.model.NullContextWrite(self._nothing)
        super().__init__(len(labels), start=self._nothing)

    def follow(self, history: Hashable, label: int) -> Any:
        """KenLM's state behind one more label."""
        if label == self._bos:
            return self._begin
        after = self._kenlm.State()
        self.model.BaseScore(history, self._words[label], after)
        return after

    def row(self, history: Hashable) -> Tensor:
        after = self._kenlm.State()
        scores = [
            -math.inf if word is None else self.model.BaseScore(history, word, after) * math.log(10)
            for word in self._words
        ]
        return torch.tensor(scores)

    def _has_unknown(self) -> bool:
        """KenLM gives files without <unk> one of probability 10 ** -100."""
        state = self._kenlm.State()
        self.model.NullContextWrite(state)
        return self.model.BaseScore(state, UNKNOWN, self._kenlm.State()) > -99
