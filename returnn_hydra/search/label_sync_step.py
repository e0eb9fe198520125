"""Forward step: label-synchronous beam search.

Legend: B sequences, T' encoder frames, V labels of the search.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from returnn_hydra.search.ctc_prefix_scorer import CTCPrefixScorer
from returnn_hydra.search.label_sync import LabelSyncSearch, LengthNormalization
from returnn_hydra.search.scorer import CombinedScorer, Encoded, LabelScorer, check_names
from returnn_hydra.search.search_step import (
    LanguageModelConf,
    Search,
    SearchStep,
    add_times,
    check_ctc_output,
    language_model_scorer,
)
from returnn_hydra.search.step_scorer import DecoderScorer, InternalLanguageModelScorer
from returnn_hydra.search.transducer_scorer import TransducerScorer
from returnn_hydra.usage import UsageError


class LabelSync(SearchStep):
    """Label-synchronous beam search (see `LabelSyncSearch`) over a log-linear combination of scorers.

    Arguments:
        scorers: scale of each scorer: `am` (the attention decoder, or a transducer), `ctc` (prefix probabilities of the
            model's CTC output), `ilm` (what the attention decoder knows of the labels alone, see
            `InternalLanguageModelScorer`), and the names of `language_models`. A negative scale subtracts.
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
        scorers: Mapping[str, float],
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
        self.scales, self.language_models = dict(scorers), dict(language_models or {})
        known = ["am", "ctc", "ilm", *self.language_models]
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

    def check_model(self, model: nn.Module) -> None:
        """Raises UsageError: the model can't give the scores of all `scorers`."""
        _labels_of(model)
        if "ctc" in self.scales or self.with_times:
            check_ctc_output(self, model)
        if "ilm" in self.scales and "ilm" not in self.language_models:
            _check_decoder(model)

    def make_search(self, model: nn.Module, encoded: Encoded) -> Search:
        size, bos, eos = _labels_of(model)
        scorers: dict[str, LabelScorer] = {}
        for name in self.scales:
            if name == "am":
                scorers[name] = self._acoustic_scorer(model, size, eos)
            elif name == "ctc":
                scorers[name] = CTCPrefixScorer(size, eos, self.blank)
            elif name in self.language_models:
                scorers[name] = self._language_scorer(name, size, eos, encoded)
            else:
                scorers[name] = _internal_scorer(model, size)
        search = LabelSyncSearch(CombinedScorer(scorers, self.scales), bos=bos, eos=eos, **self.search_options)
        return (lambda encoded: add_times(search(encoded), encoded, self.blank)) if self.with_times else search

    def _acoustic_scorer(self, model: Any, size: int, eos: int) -> LabelScorer:
        if hasattr(model, "decoder"):
            return DecoderScorer(model.decoder, size, **self.coverage)
        return TransducerScorer(model, size, eos)

    def _language_scorer(self, name: str, size: int, eos: int, encoded: Encoded) -> LabelScorer:
        if name not in self._language_scorers:
            conf = self.language_models[name]
            names = [] if isinstance(conf, nn.Module) else self.label_names(size, eos)
            self._language_scorers[name], *_ = language_model_scorer(conf, names, eos, encoded.lengths, size)
        return self._language_scorers[name]


def _internal_scorer(model: Any, size: int) -> LabelScorer:
    _check_decoder(model)
    return InternalLanguageModelScorer(model.decoder, size)


def _check_decoder(model: nn.Module) -> None:
    if not hasattr(model, "decoder"):
        raise UsageError(
            f"search.scorers.ilm: {type(model).__name__} has no attention decoder; for another internal language model "
            "name a trained one in search.language_models.ilm"
        )


def _labels_of(model: Any) -> tuple[int, int, int]:
    """Number of labels, begin and end of sequence of the search."""
    if hasattr(model, "decoder"):
        return model.decoder.num_classes, model.bos_id, model.eos_id
    if hasattr(model, "joint"):
        return model.blank_id + 1, model.blank_id, model.blank_id
    raise UsageError(
        f"label-synchronous search needs a model with a decoder, or a transducer, not {type(model).__name__}; for a "
        "CTC model take search=ctc_best_path or search=ctc_prefix"
    )
