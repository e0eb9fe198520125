"""Pure tensor steps of a beam search: the best candidates, and what belongs to their parents.

Legend: B sequences, K hypotheses per sequence (beam), V labels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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
