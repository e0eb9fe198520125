"""Training by connectionist temporal classification.

Legend: B sequences, T' model outputs, S labels, C classes (blank included).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from returnn_hydra.batch import Batch, Loss, TensorSpec, num_labels
from returnn_hydra.nn.labels import edit_distances
from returnn_hydra.steps.classification import check_features_model, run_model
from returnn_hydra.steps.targets import check_frames, frames_needed, label_sequences
from returnn_hydra.usage import UsageError


class CTC:
    """Loss `ctc` (nats per label; Graves et al. 2006), and in evaluation `label_error` (edit distance of the best path
    per label).

    Args:
        data_key: stream of features.
        target_key: stream of label sequences.
        blank: class of the blank; negative numbers count from the end. The labels are the other classes.
        skip_too_long: leave out sequences with more labels than the model has outputs, and count them as score
            `ctc_skipped`; else they are an error.
        extern_data: descriptions of the streams (from the program); else the range of every label is looked at.
    """

    def __init__(
        self,
        data_key: str = "data",
        target_key: str = "classes",
        blank: int = -1,
        skip_too_long: bool = False,
        extern_data: Mapping[str, TensorSpec] | None = None,
    ) -> None:
        self.num_labels = num_labels(extern_data, target_key)
        self.data_key = data_key
        self.target_key = target_key
        self.blank = blank
        self.skip_too_long = skip_too_long

    def check_model(self, model: nn.Module) -> None:
        """Raises UsageError: the model is none of features."""
        check_features_model(self, model)

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        logits, lengths = run_model(model, batch, self.data_key)
        return self.losses(logits, lengths, batch, with_error=not model.training)

    def losses(self, logits: Tensor, lengths: Tensor, batch: Batch, with_error: bool) -> dict[str, Loss]:
        """For logits (B, T', C), (B,).

        Raises:
            UsageError: too many labels for the outputs, a label that is no class, or the blank among the labels.
        """
        blank, labels, label_lengths = self.labels(logits, batch)
        needed = frames_needed(labels, label_lengths)
        if not self.skip_too_long:
            check_frames(batch, self.target_key, needed, lengths)
        kept = needed <= lengths
        nats = sequence_losses(logits, lengths, labels, label_lengths, blank)
        count = (label_lengths * kept).sum()
        losses = {"ctc": Loss(torch.where(kept, nats, 0.0).sum(), count.clamp(min=1))}
        if self.skip_too_long:
            losses["ctc_skipped"] = Loss((~kept).sum(), len(lengths), as_error=True)
        if with_error:
            best, best_lengths = best_path(logits, lengths, blank)
            errors = edit_distances(best, best_lengths, labels, label_lengths).sum()
            losses["label_error"] = Loss(errors, label_lengths.sum().clamp(min=1), as_error=True)
        return losses

    def labels(self, logits: Tensor, batch: Batch) -> tuple[int, Tensor, Tensor]:
        """The blank's class, the labels (B, S), and their lengths (B,)."""
        num_classes = logits.shape[2]
        if not -num_classes <= self.blank < num_classes:
            raise UsageError(f"blank={self.blank}: the model has only {num_classes} classes")
        blank = self.blank % num_classes
        labels, label_lengths = label_sequences(batch, self.target_key, num_classes, blank, self.num_labels)
        return blank, labels, label_lengths

    def log_likelihoods(self, model: nn.Module, batch: Batch) -> Tensor:
        """(B,): log p(labels | features), summed over all alignments; -inf where there are too few outputs."""
        logits, lengths = run_model(model, batch, self.data_key)
        blank, labels, label_lengths = self.labels(logits, batch)
        return -sequence_losses(logits, lengths, labels, label_lengths, blank)


def sequence_losses(logits: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor, blank: int) -> Tensor:
    """-log p(labels | features) of every sequence, (B,); inf (with a gradient of zero) where it is impossible."""
    log_probs = logits.float().log_softmax(-1).transpose(0, 1)
    arguments = (log_probs, labels, lengths, label_lengths, blank)
    nats = F.ctc_loss(*arguments, reduction="none", zero_infinity=True)
    return nats.masked_fill(frames_needed(labels, label_lengths) > lengths, torch.inf)


def best_path(logits: Tensor, lengths: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """The best class of every output, repetitions and blanks removed: (B, T', C), (B,) -> (B, S), (B,)."""
    best = logits.argmax(-1)
    frame = torch.arange(best.shape[1], device=best.device)
    before = F.pad(best[:, :-1], (1, 0), value=blank)
    kept = (best != blank) & (best != before) & (frame < lengths[:, None])
    order = torch.where(kept, frame, best.shape[1]).argsort(dim=1, stable=True)  # the kept ones first
    return best.gather(1, order), kept.sum(1)
