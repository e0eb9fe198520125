"""CTC best path decoding: the most likely class of every frame, repetitions and blanks removed.

Legend: B sequences, T frames, C classes (labels and the blank).
"""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor

from returnn_hydra.batch import sequence_mask
from returnn_hydra.search.result import Hypothesis


@torch.no_grad()
def ctc_best_path(log_probs: Tensor, lengths: Tensor, blank: int = -1) -> list[list[Hypothesis]]:
    """The labels of the best path of every sequence, with the frames of each label.

    The score is that of the path, not the sum over all paths of the labels (Graves et al. 2006, "Connectionist temporal
    classification", section 3.2, best path decoding).

    Arguments:
        log_probs: (B, T, C).
        lengths: (B,) frames.
        blank: class of the blank; negative numbers count from the end.

    Returns:
        one hypothesis for every sequence.
    """
    blank = blank_class(blank, log_probs.shape[-1])
    best, classes = log_probs.max(dim=-1)  # (B, T)
    scores = best.double().masked_fill(~sequence_mask(lengths, log_probs.shape[1]), 0.0).sum(1)
    paths = (row[:length] for row, length in zip(classes.tolist(), lengths.tolist(), strict=True))
    return [[collapse_path(path, blank, score)] for path, score in zip(paths, scores.tolist(), strict=True)]


def collapse_path(path: list[int], blank: int, score: float) -> Hypothesis:
    """The labels of one class per frame, with the frames of each."""
    labels, times = [], []
    for label, frames in groupby(range(len(path)), key=path.__getitem__):
        if label != blank:
            first, *rest = frames
            labels.append(label)
            times.append((first, first + len(rest) + 1))
    return Hypothesis(labels, score, times)


def blank_class(blank: int, num_classes: int) -> int:
    """The index of the blank; negative ones count from the end.

    Raises:
        ValueError: there is no such class.
    """
    if not -num_classes <= blank < num_classes:
        raise ValueError(f"blank={blank} is not one of the {num_classes} classes")
    return blank % num_classes
