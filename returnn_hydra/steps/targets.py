"""Label sequences of a batch, checked against what the model can say.

Legend: B sequences, S labels, T' model outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from returnn_hydra.batch import Batch, sequence_mask
from returnn_hydra.usage import UsageError


def label_sequences(
    batch: Batch, target_key: str, num_classes: int, reserved: int | None = None, num_labels: int | None = None
) -> tuple[Tensor, Tensor]:
    """The labels (B, S) int64, zero at the padding, and their lengths (B,).

    Args:
        num_classes: of the model.
        reserved: a class that is no label (the blank).
        num_labels: the labels are known to be below it, so that nobody has to wait for their check.

    Raises:
        UsageError: the stream has no time axis, or a label that is none of the model's, or the reserved one.
    """
    if target_key not in batch.lengths:
        raise UsageError(f"stream {target_key!r} has one value per sequence; expected a sequence of labels")
    labels, lengths = batch[target_key].long(), batch.lengths[target_key]
    labels = labels.masked_fill(~sequence_mask(lengths, labels.shape[1]), 0)
    if num_labels is not None and num_labels <= num_classes and (reserved is None or reserved >= num_labels):
        return labels, lengths
    wrong = (labels < 0) | (labels >= num_classes)
    if reserved is not None:
        wrong |= (labels == reserved) & sequence_mask(lengths, labels.shape[1])
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        but = "" if reserved is None else f" but {reserved}, the blank"
        raise UsageError(
            f"sequence {batch.seq_tags[row]!r}: label {int(labels[row, column])} at position {column} of stream "
            f"{target_key!r}; the model's {num_classes} classes allow 0..{num_classes - 1}{but}"
        )
    return labels, lengths


def frames_needed(labels: Tensor, lengths: Tensor) -> Tensor:
    """Outputs that CTC needs at least: one per label, and a blank between equal neighbours; (B, S), (B,) -> (B,)."""
    repeated = (labels[:, 1:] == labels[:, :-1]) & sequence_mask(lengths, labels.shape[1])[:, 1:]
    return lengths + repeated.sum(1)


def check_frames(batch: Batch, target_key: str, needed: Tensor, output_lengths: Tensor) -> None:
    """Raises UsageError for the first sequence with more labels than its outputs can carry."""
    num_labels = batch.lengths_on_cpu(batch.lengths[target_key])
    if (2 * num_labels <= batch.lengths_on_cpu(output_lengths)).all():  # enough for a blank between all of them
        return
    short = needed > output_lengths
    if bool(short.any()):
        index = int(torch.nonzero(short)[0])
        raise UsageError(
            f"sequence {batch.seq_tags[index]!r} needs {int(needed[index])} outputs for its labels, "
            f"and the model gives {int(output_lengths[index])}: use less subsampling, filter such sequences, or set "
            "skip_too_long=true in the train step to leave them out of the loss"
        )
