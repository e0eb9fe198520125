"""Training of transducers.

The model is one like `returnn_hydra.models.transducer.Transducer`: it has `blank_id` and `num_classes`, and returns the
logits of the whole lattice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from returnn_hydra.batch import Batch, Loss, TensorSpec, num_labels
from returnn_hydra.nn.transducer_loss import transducer_loss
from returnn_hydra.steps.targets import label_sequences
from returnn_hydra.usage import check_attributes, check_call


class Transducer:
    """Loss `transducer`: nats per label, summed over all alignments (Graves 2012, Sequence Transduction).

    Args:
        data_key: stream of features.
        target_key: stream of label sequences.
        extern_data: descriptions of the streams (from the program); else the range of every label is looked at.
    """

    def __init__(
        self,
        data_key: str = "data",
        target_key: str = "classes",
        extern_data: Mapping[str, TensorSpec] | None = None,
    ) -> None:
        self.num_labels = num_labels(extern_data, target_key)
        self.data_key = data_key
        self.target_key = target_key

    def check_model(self, model: nn.Module) -> None:
        """Raises UsageError: the model is no transducer."""
        check_attributes(self, model, ("blank_id", "num_classes"), "transducer")
        check_call(self, model, ("features", "lengths", "labels", "label_lengths"), "transducer")

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        nats, label_lengths = self.sequence_losses(model, batch)
        return {"transducer": Loss(nats.sum(), label_lengths.sum().clamp(min=1))}

    def log_likelihoods(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,): log p(labels | features), summed over all alignments."""
        nats, _ = self.sequence_losses(model, batch)
        return -nats

    def sequence_losses(self, model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """-log p(labels | features) and number of labels of every sequence, both (B,)."""
        labels, label_lengths = label_sequences(
            batch, self.target_key, model.num_classes, model.blank_id, self.num_labels
        )
        logits, lengths = model(batch[self.data_key], batch.lengths[self.data_key], labels, label_lengths)
        log_probs = logits.float().log_softmax(-1)
        return transducer_loss(log_probs, labels, lengths, label_lengths, model.blank_id), label_lengths
