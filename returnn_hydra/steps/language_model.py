"""Training of language models.

The model is one like those in `returnn_hydra.models` with `bos_id`, `eos_id` and `num_classes`, called with labels and
lengths.

Legend: B sequences, S labels with the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from returnn_hydra.batch import Batch, Loss, TensorSpec, num_labels
from returnn_hydra.nn.labels import append, prepend
from returnn_hydra.steps.label_prediction import next_label_losses, sequence_log_likelihoods
from returnn_hydra.steps.targets import label_sequences
from returnn_hydra.usage import UsageError, check_attributes, check_call, described

LANGUAGE_MODELS = "lstm_lm, transformer_lm"


class LanguageModelCrossEntropy:
    """Losses `ce` (nats per label, the end included; its exponential is the perplexity) and `error` (fraction of labels
    that are not the best).

    Args:
        data_key: stream of label sequences, without begin and end.
        label_smoothing: in training, this part of a target's probability is spread evenly over all classes.
        extern_data: descriptions of the streams (from the program); else the range of every label is looked at.
    """

    def __init__(
        self,
        data_key: str = "data",
        label_smoothing: float = 0.0,
        extern_data: Mapping[str, TensorSpec] | None = None,
    ) -> None:
        self.num_labels = num_labels(extern_data, data_key)
        self.data_key = data_key
        self.label_smoothing = label_smoothing

    def check_model(self, model: nn.Module) -> None:
        """Raises UsageError: the model is no language model."""
        check_attributes(self, model, ("bos_id", "eos_id", "num_classes"), LANGUAGE_MODELS)
        check_call(self, model, ("labels", "lengths"), LANGUAGE_MODELS)

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        logits, targets, _ = self.run_model(model, batch)
        lengths = batch.lengths_on_cpu(batch.lengths[self.data_key]) + 1
        smoothing = self.label_smoothing if model.training else 0.0
        return next_label_losses(logits, targets, lengths, smoothing)

    def log_likelihoods(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,): log p(labels and end)."""
        return sequence_log_likelihoods(*self.run_model(model, batch))

    def run_model(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, S, V), and the labels with their end (B, S) and lengths (B,) that they should predict.

        Raises:
            UsageError: the model returns something else.
        """
        labels, lengths = label_sequences(batch, self.data_key, model.num_classes, num_labels=self.num_labels)
        logits = model(prepend(labels, model.bos_id), lengths + 1)
        if not isinstance(logits, Tensor) or logits.ndim != 3:
            raise UsageError(
                f"{type(model).__name__} returns {described(logits)}; expected logits, (sequences, labels, classes)"
            )
        return logits, append(labels, lengths, model.eos_id), lengths + 1
