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
from returnn_hydra.search.kenlm_scorer import KenLMScorer, is_kenlm_binary
from returnn_hydra.search.mixture import Mixture, MixtureScorer
from returnn_hydra.search.ngram import NgramScorer
from returnn_hydra.search.result import Hypothesis, pack
from returnn_hydra.search.scorer import Encoded, LabelScorer
from returnn_hydra.search.step_scorer import LanguageModelScorer
from returnn_hydra.search.word_lookahead import WordLookahead, WordNgrams
from returnn_hydra.usage import UsageError, check_call

KENLM = "kenlm:"
"""In front of the path of an n-gram file: KenLM reads it."""
Search = Callable[[Encoded], list[list[Hypothesis]]]
CTC_MODELS = "blstm_ctc, conformer_ctc, time_conv_ctc, or an encoder-decoder with ctc=true"
LanguageModelConf = nn.Module | str | Path | WordNgrams | Mixture
"""A trained language model (with `initial_state`, `step`, `num_classes`, `bos_id`), the path of an n-gram file, a word
model for characters, or several of them."""


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

    def check_model(self, model: nn.Module) -> None:
        """Raises UsageError: the search can't use the model."""

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Output]:
        outputs = pack(self.search_batch(model, batch))
        if self.target_key is not None and self.target_key in batch:
            outputs["reference"] = Output(batch[self.target_key], batch.lengths[self.target_key])
        return outputs

    def search_batch(self, model: nn.Module, batch: Batch) -> list[list[Hypothesis]]:
        """The hypotheses of every sequence, best first.

        Raises:
            UsageError: there is no such search of the model: options, a language model or a lexicon that don't fit.
        """
        encoded = self.encode(model, batch)
        try:
            search = self.make_search(model, encoded)
        except FileNotFoundError as error:
            raise UsageError(f"search: {error.filename}: no such file") from error
        except ValueError as error:
            raise UsageError(f"search: {error}") from error
        return search(encoded)

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


@torch.no_grad()
def add_times(results: list[list[Hypothesis]], encoded: Encoded, blank: int) -> list[list[Hypothesis]]:
    """The same hypotheses with the frames of their labels in the best CTC path; none for those that no path fits."""
    log_probs = ctc_log_probs(encoded)
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


def check_ctc_output(step: SearchStep, model: nn.Module) -> None:
    """Whether a model gives CTC probabilities, by `ctc_logits` or by itself.

    Raises:
        UsageError: it gives none; names models that do.
    """
    if not hasattr(model, "encode"):
        check_call(step, model, ("features", "lengths"), CTC_MODELS)
    elif getattr(model, "ctc_logits", None) is None or getattr(model, "ctc_output", model) is None:
        raise UsageError(
            f"{type(step).__name__} needs a CTC output, and this {type(model).__name__} has none; models that fit: "
            f"{CTC_MODELS}"
        )


def ctc_log_probs(encoded: Encoded) -> Tensor:
    if encoded.ctc_log_probs is None:
        raise ValueError("this search needs a model with a CTC output (ctc_logits), or a CTC model")
    return encoded.ctc_log_probs


def language_model_scorer(
    conf: LanguageModelConf, names: list[str], end: int, like: Tensor, num_labels: int
) -> tuple[LabelScorer, int, int]:
    """The scorer of a language model, and its labels for begin and end of sequence.

    Arguments:
        conf: the language model; a module is moved to the device of `like`, and into evaluation mode.
        names: names of the labels, for n-gram models.
        end: label for the end of the sequence, of n-gram models.
        num_labels: labels of the search, the end of the sequence or the blank included.

    Raises:
        ValueError: the module's labels can't be those of the search, or models of a mixture don't fit together.
    """
    if isinstance(conf, Mixture):
        return _mixed_scorer(conf, names, end, like, num_labels)
    if isinstance(conf, WordNgrams):
        return WordLookahead(conf.file, names, conf.separator, end, end), end, end
    if not isinstance(conf, nn.Module):
        return _ngram_scorer(str(conf), names, end), end, end
    model: Any = conf.to(like.device).eval()
    if abs(model.num_classes - num_labels) > 1:  # with or without a label for the end, or the blank
        raise ValueError(
            f"the language model has {model.num_classes} labels, the search {num_labels} (end of sequence or blank "
            "included): both need the same vocabulary"
        )
    return LanguageModelScorer(model, model.num_classes), model.bos_id, model.eos_id


def _ngram_scorer(conf: str, names: list[str], end: int) -> LabelScorer:
    """Of an ARPA file; by KenLM where its name begins with "kenlm:", or if it is a binary file of KenLM."""
    path = conf.removeprefix(KENLM)
    if path != conf or is_kenlm_binary(path):
        return KenLMScorer(path, names, bos=end, eos=end)
    return NgramScorer(path, names, bos=end, eos=end)


def _mixed_scorer(
    conf: Mixture, names: list[str], end: int, like: Tensor, num_labels: int
) -> tuple[LabelScorer, int, int]:
    parts = [language_model_scorer(model, names, end, like, num_labels) for model in conf.models]
    boundaries = {(bos, eos) for _, bos, eos in parts}
    if len(boundaries) != 1:
        raise ValueError(
            f"the models of a mixture must have the same labels for begin and end, but have {sorted(boundaries)}"
        )
    ((bos, eos),) = boundaries
    return MixtureScorer([scorer for scorer, _, _ in parts], conf.weights), bos, eos
