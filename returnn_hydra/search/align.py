"""CTC forced alignment: the best path of given labels.

Legend: B sequences, T frames, C classes (labels and the blank), L labels of the longest sequence, S = 2 L + 1 states
(a blank before, between and behind the labels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from returnn_hydra.search.ctc_best_path import blank_class
from returnn_hydra.usage import UsageError


@dataclass(frozen=True)
class Alignment:
    """Which label every frame belongs to."""

    classes: Tensor
    """(B, T) int64: the class of every frame; the blank behind the end of a sequence."""
    positions: Tensor
    """(B, T) int64: index of the frame's label in the sequence of labels; -1 for a blank."""
    scores: Tensor
    """(B,) float64: log probability of the path."""

    def label_times(self) -> list[list[tuple[int, int]]]:
        """First frame, and the frame behind the last one, of every label of every sequence."""
        times = []
        for row in self.positions.tolist():
            spans: list[tuple[int, int]] = []
            for frame, position in enumerate(row):
                if position == len(spans):
                    spans.append((frame, frame + 1))
                elif position >= 0:
                    spans[position] = (spans[position][0], frame + 1)
            times.append(spans)
        return times


@torch.no_grad()
def ctc_align(
    log_probs: Tensor,
    lengths: Tensor,
    labels: Tensor,
    label_lengths: Tensor,
    blank: int = -1,
    seq_tags: Sequence[str] | None = None,
) -> Alignment:
    """The most likely CTC path of the given labels (Viterbi search over the states of Graves et al. 2006, section 4.1).

    Of equally likely paths, the one that enters each label latest from the end of the sequence backwards.

    Arguments:
        log_probs: (B, T, C).
        lengths: (B,) frames.
        labels: (B, L) classes, without blanks; any value behind `label_lengths` (B,).
        blank: class of the blank; negative numbers count from the end.
        seq_tags: names of the sequences, for errors.

    Raises:
        UsageError: a sequence has too few frames for its labels, holds a label that is no class, or no path of its
            labels is possible.
    """
    blank = blank_class(blank, log_probs.shape[-1])
    names = list(seq_tags) if seq_tags is not None else [f"number {b} of the batch" for b in range(len(lengths))]
    inside = torch.arange(labels.shape[1], device=labels.device) < label_lengths[:, None]
    labels = labels.long().masked_fill(~inside, blank)
    _check(labels, inside, lengths, blank, log_probs.shape[-1], names)

    states = torch.full((len(labels), 2 * labels.shape[1] + 1), blank, device=labels.device)
    states[:, 1::2] = labels  # (B, S)
    skips = torch.zeros_like(
        states, dtype=torch.bool
    )  # a label that differs from the one before may follow it without a blank
    skips[:, 3::2] = labels[:, 1:] != labels[:, :-1]

    shifts, final = _forward(log_probs, lengths, states, skips)
    last = 2 * label_lengths.long()[:, None]  # (B, 1): the blank behind the last label
    ends = torch.cat([last, (last - 1).clamp(min=0)], dim=1)
    scores, which = final.gather(1, ends).max(dim=1)
    scores = scores.where(lengths > 0, 0.0)  # without frames and labels: the empty path
    for name, score in zip(names, scores.tolist(), strict=True):
        if score == -float("inf"):
            raise UsageError(f"sequence {name}: every CTC path of its labels has probability 0")
    path = _backward(shifts, lengths, ends.gather(1, which[:, None])[:, 0])  # (B, T) states
    real = path >= 0
    path = path.clamp(min=0)
    classes = states.gather(1, path)
    return Alignment(classes, torch.where(real & (path % 2 == 1), path // 2, -1), scores)


def _forward(log_probs: Tensor, lengths: Tensor, states: Tensor, skips: Tensor) -> tuple[Tensor, Tensor]:
    """How many states the best path moved up to be in a state (T, B, S), and the scores (B, S) behind each sequence's
    last frame.
    """
    num_frames = log_probs.shape[1]
    shifts = torch.zeros(num_frames, *states.shape, dtype=torch.int8, device=states.device)
    scores = torch.full(states.shape, -torch.inf, dtype=torch.double, device=states.device)
    for frame in range(num_frames):
        emission = log_probs[:, frame].double().gather(1, states)
        if frame == 0:
            scores[:, :2] = emission[:, :2]
            continue
        step = torch.nn.functional.pad(scores[:, :-1], (1, 0), value=-torch.inf)
        skip = torch.nn.functional.pad(scores[:, :-2], (2, 0), value=-torch.inf)[:, : scores.shape[1]]
        best, shift = scores, shifts[frame]
        for moved, source in ((1, step), (2, skip.masked_fill(~skips, -torch.inf))):
            better = source > best
            best = torch.where(better, source, best)
            shift.masked_fill_(better, moved)
        scores = torch.where((frame < lengths)[:, None], best + emission, scores)
    return shifts, scores


def _backward(shifts: Tensor, lengths: Tensor, state: Tensor) -> Tensor:
    """The states (B, T) of the path that ends in `state` (B,); -1 behind the end of a sequence."""
    path = torch.full((len(state), len(shifts)), -1, device=state.device)
    for frame in range(len(shifts) - 1, -1, -1):
        inside = frame < lengths
        path[:, frame] = torch.where(inside, state, -1)
        shift = shifts[frame].gather(1, state[:, None])[:, 0].long()
        state = torch.where(inside, state - shift, state)
    return path


def _check(labels: Tensor, inside: Tensor, lengths: Tensor, blank: int, num_classes: int, names: list[str]) -> None:
    wrong = inside & ((labels < 0) | (labels >= num_classes) | (labels == blank))
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise UsageError(
            f"sequence {names[row]}: label {column} is {int(labels[row, column])}; "
            f"expected a class in [0, {num_classes}) other than the blank, {blank}"
        )
    repeated = ((labels[:, 1:] == labels[:, :-1]) & inside[:, 1:]).sum(1)
    needed = inside.sum(1) + repeated
    for name, need, have in zip(names, needed.tolist(), lengths.tolist(), strict=True):
        if have < need:
            raise UsageError(f"sequence {name} has {have} frames, but its labels need at least {need}")
