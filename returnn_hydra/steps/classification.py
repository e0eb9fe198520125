"""What the frame-wise steps share: model outputs and targets, by frame or by sequence.

Legend: B sequences, T frames, C classes, N items that are classified (real frames, or sequences).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from returnn_hydra.batch import Batch, sequence_mask
from returnn_hydra.usage import UsageError, check_call, described

FEATURE_MODELS = "blstm, conformer, transformer, vgg_blstm, blstm_ctc, conformer_ctc, time_conv_ctc, ..."


def run_model(model: nn.Module, batch: Batch, data_key: str) -> tuple[Tensor, Tensor]:
    """Logits (B, T', C) and their lengths (B,) for a stream of features.

    Raises:
        UsageError: the model returns something else.
    """
    found = model(batch[data_key], batch.lengths[data_key])
    if isinstance(found, tuple | list) and len(found) == 2:
        logits, lengths = found
        if isinstance(logits, Tensor) and isinstance(lengths, Tensor) and (logits.ndim, lengths.ndim) == (3, 1):
            return logits, lengths
    raise UsageError(
        f"{type(model).__name__} returns {described(found)}; expected logits of shape (sequences, outputs, classes), "
        "and the number of outputs of every sequence"
    )


def check_features_model(step: object, model: nn.Module) -> None:
    """Whether `run_model` can call it.

    Raises:
        UsageError: it can't; names models that fit.
    """
    check_call(step, model, ("features", "lengths"), FEATURE_MODELS)


def mean_over_frames(logits: Tensor, lengths: Tensor) -> Tensor:
    """Mean over the real frames: (B, T, C), (B,) -> (B, C)."""
    mask = sequence_mask(lengths, logits.shape[1])[:, :, None]
    return (logits * mask).sum(1) / lengths.clamp(min=1)[:, None]


def pair_items(
    logits: Tensor, lengths: Tensor, batch: Batch, target_key: str, num_labels: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with the target each of them has.

    Targets with as many frames as the logits belong to the frames. One target per sequence, as (B,) or as (B, 1) with
    lengths of 1, belongs to the sequence, whose logits are the mean over its frames.

    Args:
        logits: (B, T, C).
        lengths: (B,).
        num_labels: the targets are known to be below it, so that nobody has to wait for their check.

    Returns:
        (N, C) logits, (N,) int64 targets, and (N,) the index of the sequence of each.

    Raises:
        UsageError: another number of targets in a sequence, or a target that is none of the C classes.
    """
    targets = batch[target_key].long()
    target_lengths = batch.lengths.get(target_key)
    wanted = None if target_lengths is None else batch.lengths_on_cpu(target_lengths)
    given = batch.lengths_on_cpu(lengths)
    if wanted is not None and (wanted == given).all():
        size = min(logits.shape[1], targets.shape[1])  # of the longest sequence; either may be padded further
        rows = frame_rows(given, size, logits.device)
        items = logits[:, :size].reshape(-1, logits.shape[2]).index_select(0, rows)
        targets, sequences = targets[:, :size].reshape(-1).index_select(0, rows), rows // size
    elif wanted is None or (wanted == 1).all():
        items, targets = mean_over_frames(logits, lengths), targets.reshape(-1)
        sequences = torch.arange(len(lengths), device=lengths.device)
    else:
        index = int((wanted != given).argmax())
        raise UsageError(
            f"sequence {batch.seq_tags[index]!r}: stream {target_key!r} has {wanted[index]} targets and the model "
            f"{given[index]} outputs; expected one target per output, or one per sequence (for label "
            "sequences: train_step=ctc, attention or transducer, with a model that fits)"
        )
    if num_labels is None or num_labels > logits.shape[2]:
        _check_classes(targets, logits.shape[2], batch, sequences, target_key)
    return items, targets, sequences


def frame_rows(lengths: np.ndarray, size: int, device: torch.device) -> Tensor:
    """Where the real frames are in a tensor (B * size, ...), int64; computed on the CPU, so that nothing waits."""
    rows = np.flatnonzero(np.arange(size) < lengths[:, None])
    return torch.from_numpy(rows).to(device, non_blocking=True)


def _check_classes(targets: Tensor, num_classes: int, batch: Batch, sequences: Tensor, target_key: str) -> None:
    wrong = (targets < 0) | (targets >= num_classes)
    if bool(wrong.any()):
        index = int(wrong.nonzero()[0])
        raise UsageError(
            f"sequence {batch.seq_tags[int(sequences[index])]!r}: target {int(targets[index])} in "
            f"stream {target_key!r}; the model's classes are 0..{num_classes - 1}"
        )
