"""Forward steps for transducers.

Legend: B sequences.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from returnn_hydra.search.scorer import Encoded, LabelScorer
from returnn_hydra.search.search_step import LanguageModelConf, Search, SearchStep, language_model_scorer
from returnn_hydra.search.transducer_search import TransducerBeamSearch, TransducerGreedySearch
from returnn_hydra.usage import check_attributes


class TransducerStep(SearchStep):
    """Base: a search for models like `returnn_hydra.models.transducer.Transducer`."""

    def check_model(self, model: nn.Module) -> None:
        """Raises UsageError: the model is no transducer."""
        check_attributes(self, model, ("encode", "joint", "blank_id"), "transducer")


class TransducerGreedy(TransducerStep):
    """Greedy transducer search (see `TransducerGreedySearch`)."""

    def __init__(self, max_labels_per_frame: int = 10, **options: Any) -> None:
        super().__init__(**options)
        self.max_labels_per_frame = max_labels_per_frame

    def make_search(self, model: nn.Module, encoded: Encoded) -> Search:
        return TransducerGreedySearch(model, max_labels_per_frame=self.max_labels_per_frame)  # type: ignore[arg-type]


class TransducerBeam(TransducerStep):
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
                self._scorer = language_model_scorer(self.lm, names, end, encoded.lengths, end + 1)
        lm, bos, eos = self._scorer
        return TransducerBeamSearch(model, lm=lm, lm_bos=bos, lm_eos=eos, **self.search_options)  # type: ignore[arg-type]
