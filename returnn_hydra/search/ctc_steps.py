"""Forward steps for models with a CTC output: best path, prefix search, alignment.

Legend: B sequences, T' encoder frames, C classes (blank included).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from returnn_hydra.batch import Batch, Output
from returnn_hydra.search.align import ctc_align
from returnn_hydra.search.ctc_best_path import blank_class, ctc_best_path
from returnn_hydra.search.ctc_prefix_search import CTCPrefixSearch
from returnn_hydra.search.lexicon import Lexicon
from returnn_hydra.search.result import Hypothesis, pack
from returnn_hydra.search.scorer import Encoded
from returnn_hydra.search.search_step import (
    LanguageModelConf,
    Search,
    SearchStep,
    add_times,
    check_ctc_output,
    ctc_log_probs,
    language_model_scorer,
)
from returnn_hydra.usage import UsageError


class CTCBestPath(SearchStep):
    """The best path of a CTC model; with times.

    Arguments:
        blank: class of the blank; negative numbers count from the end.
    """

    def __init__(self, blank: int = -1, **options: Any) -> None:
        super().__init__(**options)
        self.blank = blank

    def check_model(self, model: nn.Module) -> None:
        """Raises UsageError: the model has no CTC output."""
        check_ctc_output(self, model)

    def make_search(self, model: nn.Module, encoded: Encoded) -> Search:
        return lambda encoded: ctc_best_path(ctc_log_probs(encoded), encoded.lengths, self.blank)


class CTCAlign(SearchStep):
    """Forced alignment of the true labels by a CTC model or output.

    Outputs: `alignment` (B, T'), the class of every frame; `positions` (B, T'), the index of its label, -1 for a
    blank; and the true labels as the only hypothesis, with times and the score of the path.

    Arguments:
        blank: class of the blank; negative numbers count from the end.
    """

    def __init__(self, blank: int = -1, **options: Any) -> None:
        super().__init__(**options)
        self.blank = blank

    def check_model(self, model: nn.Module) -> None:
        """Raises UsageError: the model has no CTC output."""
        check_ctc_output(self, model)

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Output]:
        """
        Raises:
            UsageError: no target stream, or labels that no path fits; names the sequence.
        """
        if self.target_key is None or self.target_key not in batch:
            raise UsageError(f"alignment needs the true labels: target_key={self.target_key} is no stream of the data")
        labels, label_lengths = batch[self.target_key], batch.lengths[self.target_key]
        encoded = self.encode(model, batch)
        found = ctc_align(ctc_log_probs(encoded), encoded.lengths, labels, label_lengths, self.blank, batch.seq_tags)
        rows = zip(labels.tolist(), label_lengths.tolist(), found.scores.tolist(), found.label_times(), strict=True)
        hyps = [[Hypothesis(row[:length], score, times)] for row, length, score, times in rows]
        return {
            "alignment": Output(found.classes, encoded.lengths),
            "positions": Output(found.positions, encoded.lengths),
            **pack(hyps),
        }


class CTCPrefix(SearchStep):
    """Time-synchronous CTC prefix search (see `CTCPrefixSearch`), with a language model and a lexicon.

    Arguments:
        blank, beam_size, num_best, ctc_scale, lm_scale, label_reward, lm_unit: as for `CTCPrefixSearch`.
        lm: language model over the labels of the vocabulary (with lm_unit=word an ARPA file over the words of the
            lexicon).
        lexicon: file with lines of `WORD label label ...`.
        word_separator: label between words of the lexicon; null: words follow each other at once.
        with_times: align the hypotheses with the frames.
    """

    def __init__(
        self,
        blank: int = -1,
        beam_size: int = 16,
        num_best: int = 1,
        ctc_scale: float = 1.0,
        lm: LanguageModelConf | None = None,
        lm_scale: float = 0.5,
        label_reward: float = 0.0,
        lm_unit: str = "label",
        lexicon: str | Path | None = None,
        word_separator: str | None = None,
        with_times: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.blank, self.with_times = blank, with_times
        self.lm, self.lm_unit = lm, lm_unit
        self.lexicon_file, self.word_separator = lexicon, word_separator
        self.lexicon: Lexicon | None = None
        self.search_options: dict[str, Any] = {
            "beam_size": beam_size,
            "num_best": num_best,
            "ctc_scale": ctc_scale,
            "lm_scale": lm_scale,
            "label_reward": label_reward,
        }
        self._search: CTCPrefixSearch | None = None

    def check_model(self, model: nn.Module) -> None:
        """Raises UsageError: the model has no CTC output."""
        check_ctc_output(self, model)

    def make_search(self, model: nn.Module, encoded: Encoded) -> Search:
        if self._search is None:
            self._search = self._make(encoded)
        return self._timed if self.with_times else self._search

    def _timed(self, encoded: Encoded) -> list[list[Hypothesis]]:
        assert self._search is not None
        return add_times(self._search(encoded), encoded, self.blank)

    def _make(self, encoded: Encoded) -> CTCPrefixSearch:
        num_classes = ctc_log_probs(encoded).shape[-1]
        blank = blank_class(self.blank, num_classes)
        if self.lexicon_file is not None:
            names = self.label_names(num_classes, blank)
            ids = {name: i for i, name in enumerate(names) if i != blank}
            self.lexicon = Lexicon.read(self.lexicon_file, ids, self.word_separator)
        lm, bos, eos = None, None, None
        if self.lm is not None and self.lm_unit == "word":
            if self.lexicon is None:
                raise ValueError("search.lm_unit=word needs search.lexicon")
            names = [*self.lexicon.words, "</s>"]
            lm, bos, eos = language_model_scorer(self.lm, names, len(names) - 1, encoded.lengths, len(names))
        elif self.lm is not None:
            names = [] if isinstance(self.lm, nn.Module) else self.label_names(num_classes, blank)
            lm, bos, eos = language_model_scorer(self.lm, names, blank, encoded.lengths, num_classes)
        return CTCPrefixSearch(
            blank=blank,
            lm=lm,
            lm_bos=bos,
            lm_eos=eos,
            lm_unit=self.lm_unit,
            lexicon=self.lexicon,
            **self.search_options,
        )
