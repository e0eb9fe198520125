"""Pure tensor steps of a beam search: the best candidates, and RETURNN's `choice` layer.

Legend: B sequences, K hypotheses per sequence (beam), V labels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

IMPOSSIBLE = -1e30
"""Score that RETURNN gives to every label but 0 behind an ended hypothesis."""


class Choice(NamedTuple):
    """The best extensions of the hypotheses of every sequence, best first; each (B, K')."""

    labels: Tensor
    """int64, in [0, V)."""
    parents: Tensor
    """int64: the hypothesis that was extended, in [0, K)."""
    scores: Tensor


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of the last axis, best first; of equal ones those with the lower index.

    (torch.topk leaves open which of equal scores it returns, and in which order.)

    Returns:
        values and indices, both (..., k).
    """
    k = min(k, scores.shape[-1])
    values, indices = torch.topk(scores, k, dim=-1)
    border = values[..., -1:]
    tied = ((scores >= border).sum(-1) > k) & (
        border[..., 0] > -torch.inf
    )  # which of the impossible ones does not matter
    if bool(tied.any()):
        tied_values, tied_indices = torch.sort(scores[tied], dim=-1, descending=True, stable=True)
        values[tied], indices[tied] = tied_values[..., :k], tied_indices[..., :k]
    indices, order = indices.sort(dim=-1)
    values, by_score = values.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    return values, indices.gather(-1, by_score)


def best_extensions(scores: Tensor, k: int) -> Choice:
    """The k best of all candidates (B, K, V); fewer when there are fewer."""
    vocab_size = scores.shape[-1]
    values, indices = top_k(scores.flatten(1), k)
    return Choice(indices % vocab_size, indices // vocab_size, values)


def gather_beams(tensor: Tensor, parents: Tensor) -> Tensor:
    """Per-hypothesis values (B, K, ...) of the parents (B, K') -> (B, K', ...)."""
    index = parents.view(*parents.shape, *[1] * (tensor.dim() - 2)).expand(*parents.shape, *tensor.shape[2:])
    return tensor.gather(1, index)


def choice_step(
    base_scores: Tensor,
    log_probs: Tensor,
    *,
    beam_size: int,
    step: int = 0,
    ended: Tensor | None = None,
    length_normalization: bool = True,
    length_normalization_exponent: float = 1.0,
    prob_scale: float = 1.0,
    base_beam_score_scale: float = 1.0,
) -> Choice:
    """One step of RETURNN's `choice` layer in search.

    combined = base * base_beam_score_scale + prob_scale * log p. An ended hypothesis goes on with label 0 only, at no
    cost. With length normalization the score of an ended hypothesis is stretched by ((step + 1) / step) ** exponent,
    so that dividing every score by the longest length at the end (see `choice_final_scores`) divides it by its own.

    Arguments:
        base_scores: (B, K) scores so far; K = 1 in the first step.
        log_probs: (B, K, V) of the next label.
        beam_size: hypotheses to keep. If there are fewer candidates, the rest is label 0 of hypothesis 0 with score
            -inf.
        step: index of this step, from 0.
        ended: (B, K) bool, None: no hypothesis has ended.

    Returns:
        labels, parents and scores, (B, beam_size).
    """
    if ended is not None:
        if length_normalization and step > 0:
            factor = ((step + 1) / step) ** length_normalization_exponent
            base_scores = torch.where(ended, base_scores * factor, base_scores)
        stay = torch.full_like(log_probs[0, 0], IMPOSSIBLE)
        stay[0] = 0.0
        log_probs = torch.where(ended[..., None], stay, log_probs)
    combined = base_scores[..., None] * base_beam_score_scale + prob_scale * log_probs
    choice = best_extensions(combined, beam_size)
    missing = beam_size - choice.scores.shape[1]
    if missing <= 0:
        return choice
    pad = torch.nn.functional.pad
    return Choice(
        pad(choice.labels, (0, missing)),
        pad(choice.parents, (0, missing)),
        pad(choice.scores, (0, missing), value=-torch.inf),
    )


def choice_final_scores(scores: Tensor, lengths: Tensor, *, include_eos: bool = False) -> Tensor:
    """What RETURNN reports at the end of a `choice` search with length normalization.

    Every score is divided by one number: the labels of the longest hypothesis of the batch, its end-of-sequence label
    included (whatever the exponent of the steps was).

    Arguments:
        scores: (B, K) of the last `choice_step`.
        lengths: (B, K) labels of each hypothesis; without the end-of-sequence label unless `include_eos`.
    """
    return scores / (int(lengths.max()) + (0 if include_eos else 1))


def decide(scores: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Index (B,) of the best hypothesis, as RETURNN's `decide` layer picks it; with lengths (B, K) the best per
    label.
    """
    return (scores if lengths is None else scores / lengths).argmax(dim=1)
