"""What language models and attention decoders are trained for: the next label, up to the sentence end.

Legend: B sequences, S labels with the end, V classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from returnn_hydra.batch import Loss, sequence_mask
from returnn_hydra.steps.classification import frame_rows


def next_label_losses(
    logits: Tensor, targets: Tensor, lengths: np.ndarray, label_smoothing: float = 0.0
) -> dict[str, Loss]:
    """`ce` (nats per label, the end included) and `error` (fraction of labels that are not the best).

    Args:
        logits: (B, S, V).
        targets: (B, S).
        lengths: (B,), on the CPU.
        label_smoothing: part of a target's probability that is spread evenly over all classes.
    """
    rows = frame_rows(lengths, targets.shape[1], logits.device)
    items, labels = logits.flatten(0, 1).index_select(0, rows), targets.flatten().index_select(0, rows)
    loss = F.cross_entropy(items.float(), labels, label_smoothing=label_smoothing, reduction="sum")
    errors = (items.argmax(-1) != labels).sum()
    return {"ce": Loss(loss, len(labels)), "error": Loss(errors, len(labels), as_error=True)}


def sequence_log_likelihoods(logits: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """log p of each sequence, the end included: (B, S, V), (B, S), (B,) -> (B,)."""
    scores = logits.float().log_softmax(-1).gather(2, targets[:, :, None])[:, :, 0]
    return torch.where(sequence_mask(lengths, targets.shape[1]), scores, 0.0).sum(1)
