"""Training of attention encoder-decoders, alone or jointly with CTC.

The model is one like `returnn_hydra.models.encoder_decoder.EncoderDecoder`: it has `bos_id`, `eos_id`, a `decoder` with
`num_classes`, and returns `logits`, `ctc_logits` and `encoder_lengths`.

Legend: B sequences, T' encoder frames, S labels with the end, V classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from returnn_hydra.batch import Batch, Loss, TensorSpec, num_labels
from returnn_hydra.nn.labels import append, prepend
from returnn_hydra.steps.ctc import CTC
from returnn_hydra.steps.label_prediction import next_label_losses, sequence_log_likelihoods
from returnn_hydra.steps.targets import label_sequences
from returnn_hydra.usage import UsageError, check_attributes, check_call, described

DECODER_MODELS = "lstm_attention, transformer_attention"


class AttentionCrossEntropy:
    """Losses `ce` (nats per label, the end included) and `error` (fraction of labels that are not the best), given the
    true labels before each.

    Args:
        data_key: stream of features.
        target_key: stream of label sequences, without begin and end.
        label_smoothing: in training, this part of a target's probability is spread evenly over all classes.
        extern_data: descriptions of the streams (from the program); else the range of every label is looked at.
    """

    def __init__(
        self,
        data_key: str = "data",
        target_key: str = "classes",
        label_smoothing: float = 0.0,
        extern_data: Mapping[str, TensorSpec] | None = None,
    ) -> None:
        self.num_labels = num_labels(extern_data, target_key)
        self.data_key = data_key
        self.target_key = target_key
        self.label_smoothing = label_smoothing

    def check_model(self, model: nn.Module) -> None:
        """Raises UsageError: the model has no decoder of labels."""
        check_attributes(self, model, ("decoder", "bos_id", "eos_id"), DECODER_MODELS)
        check_call(self, model, ("features", "lengths", "labels", "label_lengths"), DECODER_MODELS)

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        output, targets, _ = self.run_decoder(model, batch)
        smoothing = self.label_smoothing if model.training else 0.0
        return next_label_losses(output.logits, targets, self.lengths_with_end(batch), smoothing)

    def log_likelihoods(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,): log p(labels and end | features) of the decoder."""
        output, targets, lengths = self.run_decoder(model, batch)
        return sequence_log_likelihoods(output.logits, targets, lengths)

    def run_decoder(self, model: Any, batch: Batch) -> tuple[Any, Tensor, Tensor]:
        """The model's output, and the labels with their end (B, S) and lengths (B,) that it should predict.

        Raises:
            UsageError: the model returns something else than an `EncoderDecoderOutput`.
        """
        labels, lengths = label_sequences(batch, self.target_key, model.decoder.num_classes, num_labels=self.num_labels)
        features, frames = batch[self.data_key], batch.lengths[self.data_key]
        output = model(features, frames, prepend(labels, model.bos_id), lengths + 1)
        if not all(hasattr(output, name) for name in ("logits", "ctc_logits", "encoder_lengths")):
            raise UsageError(
                f"{type(model).__name__} returns {described(output)}; expected logits, ctc_logits and encoder_lengths, "
                "as returnn_hydra.models.encoder_decoder.EncoderDecoderOutput"
            )
        return output, append(labels, lengths, model.eos_id), lengths + 1

    def lengths_with_end(self, batch: Batch) -> np.ndarray:
        """Labels of every sequence, the end included, (B,)."""
        return batch.lengths_on_cpu(batch.lengths[self.target_key]) + 1


class JointCTCAttention(AttentionCrossEntropy):
    """Losses `ce` and `error` of the decoder and `ctc` of the encoder (Kim et al. 2017, Joint CTC-Attention); in
    evaluation also `label_error`, the edit distance of the best CTC path per label.

    Args:
        data_key: stream of features.
        target_key: stream of label sequences, without begin and end.
        ctc_scale: weight of `ctc` in what is optimised; `ce` has 1 - ctc_scale.
        label_smoothing: of the decoder, see `AttentionCrossEntropy`.
        blank: CTC class of the blank; negative numbers count from the end.
        skip_too_long: see `CTC`.
        extern_data: see `CTC`.
    """

    def __init__(
        self,
        data_key: str = "data",
        target_key: str = "classes",
        ctc_scale: float = 0.3,
        label_smoothing: float = 0.1,
        blank: int = -1,
        skip_too_long: bool = False,
        extern_data: Mapping[str, TensorSpec] | None = None,
    ) -> None:
        if not 0.0 < ctc_scale < 1.0:
            raise ValueError(f"ctc_scale={ctc_scale}: expected a number between 0 and 1")
        super().__init__(data_key, target_key, label_smoothing, extern_data)
        self.ctc_scale = ctc_scale
        self.ctc = CTC(data_key, target_key, blank, skip_too_long, extern_data)

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        output, targets, _ = self.run_decoder(model, batch)
        if output.ctc_logits is None:
            raise UsageError("the model has no CTC output; set ctc=true in the model")
        smoothing = self.label_smoothing if model.training else 0.0
        losses = next_label_losses(output.logits, targets, self.lengths_with_end(batch), smoothing)
        ctc = self.ctc.losses(output.ctc_logits, output.encoder_lengths, batch, with_error=not model.training)
        losses["ce"] = replace(losses["ce"], scale=1.0 - self.ctc_scale)
        ctc["ctc"] = replace(ctc["ctc"], scale=self.ctc_scale)
        return {**losses, **ctc}
