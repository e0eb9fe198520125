"""Searches as forward steps: what the `search` group of the configuration names.

Legend: B sequences, T frames, T' encoder frames, C classes (blank included), V labels of the search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from returnn_hydra.batch import Batch, Output, TensorSpec
from returnn_hydra.search.align import ctc_align
from returnn_hydra.search.ctc_best_path import blank_class, ctc_best_path
from returnn_hydra.search.ctc_prefix_scorer import CTCPrefixScorer
from returnn_hydra.search.ctc_prefix_search import CTCPrefixSearch
from returnn_hydra.search.label_sync import LabelSyncSearch, LengthNormalization
from returnn_hydra.search.lexicon import Lexicon
from returnn_hydra.search.ngram import NgramScorer
from returnn_hydra.search.result import Hypothesis, pack
from returnn_hydra.search.scorer import CombinedScorer, Encoded, LabelScorer, check_names
from returnn_hydra.search.step_scorer import DecoderScorer, LanguageModelScorer
from returnn_hydra.search.transducer_scorer import TransducerScorer
from returnn_hydra.search.transducer_search import TransducerBeamSearch, TransducerGreedySearch

Search = Callable[[Encoded], list[list[Hypothesis]]]
LanguageModelConf = nn.Module | str | Path
"""A trained language model (with `initial_state`, `step`, `num_classes`, `bos_id`), or the path of an ARPA file."""


class SearchStep:
    """Base: encodes a batch, searches, and returns the results as arrays (see `result.pack`), the reference beside
    them.

    Arguments:
        data_key: stream of features.
        target_key: stream of the true labels; None, or not in the batch: there is no reference.
        extern_data: descriptions of the streams (from the program); names the labels where a search needs their names.
    """

    def __init__(
        self, data_key: str = "data", target_key: str | None = None, extern_data: Mapping[str, TensorSpec] | None = None
    ) -> None:
        self.data_key, self.target_key = data_key, target_key
        self.extern_data = extern_data or {}

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Output]:
        outputs = pack(self.search_batch(model, batch))
        if self.target_key is not None and self.target_key in batch:
            outputs["reference"] = Output(batch[self.target_key], batch.lengths[self.target_key])
        return outputs

    def search_batch(self, model: nn.Module, batch: Batch) -> list[list[Hypothesis]]:
        """The hypotheses of every sequence, best first."""
        encoded = self.encode(model, batch)
        return self.make_search(model, encoded)(encoded)

    def encode(self, model: nn.Module, batch: Batch) -> Encoded:
        """The encoder's outputs, and CTC log probabilities if the model has them. A model without `encode` is a CTC
        model.
        """
        features, lengths = batch[self.data_key], batch.lengths[self.data_key]
        if not hasattr(model, "encode"):
            logits, lengths = model(features, lengths)
            return Encoded(lengths, None, logits.log_softmax(-1))
        encoder, lengths = model.encode(features, lengths)  # type: ignore[operator]
        logits = model.ctc_logits(encoder) if hasattr(model, "ctc_logits") else None  # type: ignore[operator]
        return Encoded(lengths, encoder, None if logits is None else logits.log_softmax(-1))

    def make_search(self, model: nn.Module, encoded: Encoded) -> Search:
        """The search for this model."""
        raise NotImplementedError

    def label_names(self, size: int, end: int) -> list[str]:
        """Names of the `size` labels of an n-gram model; `end` is the end of the sequence.

        Raises:
            ValueError: the target stream has no vocabulary.
        """
        spec = self.extern_data.get(self.target_key or "")
        if spec is None or spec.vocab is None:
            raise ValueError(
                f"an n-gram model needs the names of the labels: extern_data.{self.target_key} must have a vocab "
                "(search.target_key names the stream)"
            )
        names = list(spec.vocab.labels)
        if len(names) not in (size, size - 1) or (len(names) == size - 1 and end != size - 1):
            raise ValueError(
                f"the search has {size} labels (end of sequence: {end}), "
                f"but the vocabulary of {self.target_key} has {len(names)}"
            )
        return names + ["</s>"] * (size - len(names))


class CTCBestPath(SearchStep):
    """The best path of a CTC model; with times.

    Arguments:
        blank: class of the blank; negative numbers count from the end.
    """

    def __init__(self, blank: int = -1, **options: Any) -> None:
        super().__init__(**options)
        self.blank = blank

    def make_search(self, model: nn.Module, encoded: Encoded) -> Search:
        return lambda encoded: ctc_best_path(_ctc(encoded), encoded.lengths, self.blank)


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

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Output]:
        """
        Raises:
            ValueError: no target stream, or labels that no path fits; names the sequence.
        """
        if self.target_key is None or self.target_key not in batch:
            raise ValueError(f"alignment needs the true labels: target_key={self.target_key} is no stream of the data")
        labels, label_lengths = batch[self.target_key], batch.lengths[self.target_key]
        encoded = self.encode(model, batch)
        found = ctc_align(_ctc(encoded), encoded.lengths, labels, label_lengths, self.blank, batch.seq_tags)
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

    def make_search(self, model: nn.Module, encoded: Encoded) -> Search:
        if self._search is None:
            self._search = self._make(encoded)
        return self._timed if self.with_times else self._search

    def _timed(self, encoded: Encoded) -> list[list[Hypothesis]]:
        assert self._search is not None
        return add_times(self._search(encoded), encoded, self.blank)

    def _make(self, encoded: Encoded) -> CTCPrefixSearch:
        num_classes = _ctc(encoded).shape[-1]
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
            lm, bos, eos = _language_model(self.lm, names, len(names) - 1)
        elif self.lm is not None:
            names = [] if isinstance(self.lm, nn.Module) else self.label_names(num_classes, blank)
            lm, bos, eos = _language_model(self.lm, names, blank)
        return CTCPrefixSearch(
            blank=blank,
            lm=lm,
            lm_bos=bos,
            lm_eos=eos,
            lm_unit=self.lm_unit,
            lexicon=self.lexicon,
            **self.search_options,
        )


class LabelSync(SearchStep):
    """Label-synchronous beam search (see `LabelSyncSearch`) over a log-linear combination of scorers.

    Arguments:
        scales: weight of each scorer: `am` (the attention decoder, or a transducer), `ctc` (prefix probabilities of the
            model's CTC output), and the names of `language_models`. A negative weight subtracts (internal language
            model).
        language_models: by name; each a trained module or an ARPA file.
        beam_size, num_best, max_labels_per_frame, max_labels, min_labels_per_frame, stop_after: as for
            `LabelSyncSearch`.
        length_normalization, length_exponent, label_reward: as for `LengthNormalization` (kind, exponent, reward).
        coverage_scale, coverage_threshold: as for `DecoderScorer`.
        blank: class of the blank of the CTC output; negative numbers count from the end.
        with_times: align the hypotheses with the frames by the CTC output.
    """

    def __init__(
        self,
        scales: Mapping[str, float],
        language_models: Mapping[str, LanguageModelConf] | None = None,
        beam_size: int = 12,
        num_best: int = 1,
        length_normalization: str = "power",
        length_exponent: float = 1.0,
        label_reward: float = 0.0,
        max_labels_per_frame: float = 1.0,
        max_labels: int = 0,
        min_labels_per_frame: float = 0.0,
        stop_after: int | str | None = "beam",
        coverage_scale: float = 0.0,
        coverage_threshold: float = 0.5,
        blank: int = -1,
        with_times: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.scales, self.language_models = dict(scales), dict(language_models or {})
        known = ["am", "ctc", *self.language_models]
        check_names(self.scales, known, "search scale", "scorer")
        check_names(self.language_models, self.scales, "language model", "search scale")
        self.blank, self.with_times = blank, with_times
        self.coverage: dict[str, Any] = {"coverage_scale": coverage_scale, "coverage_threshold": coverage_threshold}
        self.search_options: dict[str, Any] = {
            "beam_size": beam_size,
            "num_best": num_best,
            "length_normalization": LengthNormalization(length_normalization, length_exponent, label_reward),
            "max_labels_per_frame": max_labels_per_frame,
            "max_labels": max_labels,
            "min_labels_per_frame": min_labels_per_frame,
            "stop_after": stop_after,
        }
        self._language_scorers: dict[str, LabelScorer] = {}

    def make_search(self, model: nn.Module, encoded: Encoded) -> Search:
        size, bos, eos = _labels_of(model)
        scorers: dict[str, LabelScorer] = {}
        for name in self.scales:
            if name == "am":
                scorers[name] = self._acoustic_scorer(model, size, eos)
            elif name == "ctc":
                scorers[name] = CTCPrefixScorer(size, eos, self.blank)
            else:
                scorers[name] = self._language_scorer(name, size, eos)
        search = LabelSyncSearch(CombinedScorer(scorers, self.scales), bos=bos, eos=eos, **self.search_options)
        return (lambda encoded: add_times(search(encoded), encoded, self.blank)) if self.with_times else search

    def _acoustic_scorer(self, model: Any, size: int, eos: int) -> LabelScorer:
        if hasattr(model, "decoder"):
            return DecoderScorer(model.decoder, size, **self.coverage)
        return TransducerScorer(model, size, eos)

    def _language_scorer(self, name: str, size: int, eos: int) -> LabelScorer:
        if name not in self._language_scorers:
            conf = self.language_models[name]
            names = [] if isinstance(conf, nn.Module) else self.label_names(size, eos)
            self._language_scorers[name], *_ = _language_model(conf, names, eos)
        return self._language_scorers[name]


class TransducerGreedy(SearchStep):
    """Greedy transducer search (see `TransducerGreedySearch`)."""

    def __init__(self, max_labels_per_frame: int = 10, **options: Any) -> None:
        super().__init__(**options)
        self.max_labels_per_frame = max_labels_per_frame

    def make_search(self, model: nn.Module, encoded: Encoded) -> Search:
        return TransducerGreedySearch(model, max_labels_per_frame=self.max_labels_per_frame)  # type: ignore[arg-type]


class TransducerBeam(SearchStep):
    """Alignment-length synchronous transducer search (see `TransducerBeamSearch`), with a language model.

    Arguments:
        beam_size, num_best, max_labels_per_frame, max_labels, lm_scale, label_reward: as for `TransducerBeamSearch`.
        lm: language model over the labels of the vocabulary.
    """

    def __init__(
        self,
        beam_size: int = 8,
        num_best: int = 1,
        max_labels_per_frame: float = 1.0,
        max_labels: int = 10,
        lm: LanguageModelConf | None = None,
        lm_scale: float = 0.5,
        label_reward: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.lm = lm
        self.search_options: dict[str, Any] = {
            "beam_size": beam_size,
            "num_best": num_best,
            "max_labels_per_frame": max_labels_per_frame,
            "max_labels": max_labels,
            "lm_scale": lm_scale,
            "label_reward": label_reward,
        }
        self._scorer: tuple[LabelScorer | None, int | None, int | None] | None = None

    def make_search(self, model: nn.Module, encoded: Encoded) -> Search:
        if self._scorer is None:
            end: int = model.blank_id  # type: ignore[assignment]
            self._scorer = (None, None, None)
            if self.lm is not None:
                names = [] if isinstance(self.lm, nn.Module) else self.label_names(end + 1, end)
                self._scorer = _language_model(self.lm, names, end)
        lm, bos, eos = self._scorer
        return TransducerBeamSearch(model, lm=lm, lm_bos=bos, lm_eos=eos, **self.search_options)  # type: ignore[arg-type]


@torch.no_grad()
def add_times(results: list[list[Hypothesis]], encoded: Encoded, blank: int) -> list[list[Hypothesis]]:
    """The same hypotheses with the frames of their labels in the best CTC path; none for those that no path fits."""
    log_probs = _ctc(encoded)
    timed = []
    for seq, hyps in enumerate(results):
        timed.append(
            [replace(hyp, times=_times(hyp.labels, log_probs[seq], encoded.lengths[seq], blank)) for hyp in hyps]
        )
    return timed


def _times(labels: list[int], log_probs: Tensor, length: Tensor, blank: int) -> list[tuple[int, int]] | None:
    repeated = sum(a == b for a, b in pairwise(labels))
    if len(labels) + repeated > int(length):
        return None
    target = torch.tensor([labels], dtype=torch.long, device=log_probs.device)
    size = torch.tensor([len(labels)], device=log_probs.device)
    return ctc_align(log_probs[None], length[None], target, size, blank).label_times()[0]


def _ctc(encoded: Encoded) -> Tensor:
    if encoded.ctc_log_probs is None:
        raise ValueError("this search needs a model with a CTC output (ctc_logits), or a CTC model")
    return encoded.ctc_log_probs


def _labels_of(model: Any) -> tuple[int, int, int]:
    """Number of labels, begin and end of sequence of the search."""
    if hasattr(model, "decoder"):
        return model.decoder.num_classes, model.bos_id, model.eos_id
    if hasattr(model, "joint"):
        return model.blank_id + 1, model.blank_id, model.blank_id
    raise ValueError(
        f"label-synchronous search needs a model with a decoder, or a transducer, not {type(model).__name__}"
    )


def _language_model(conf: LanguageModelConf, names: list[str], end: int) -> tuple[LabelScorer, int, int]:
    """The scorer, and its labels for begin and end of sequence."""
    if not isinstance(conf, nn.Module):
        return NgramScorer(conf, names, bos=end, eos=end), end, end
    conf.eval()
    model: Any = conf
    return LanguageModelScorer(model, model.num_classes), model.bos_id, model.eos_id
