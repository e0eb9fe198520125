"""A step of beam search, as `choice` layers do it.

Legend: B sequences, K hypotheses that come in, N that go out, V labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from returnn_hydra.network.axis import Axis
from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.search.beam import top_k

NEVER = -1.0e30
"""Score of the labels that an ended hypothesis must not take."""


@dataclass
class SearchStep:
    """Where the hypotheses of a beam come from.

    Attributes:
        source_beam: the beam before; None: there was none (one hypothesis).
        source_beams: (B, N): which of its hypotheses.
        scores: (B, N) log scores.
        normalize: the final scores are divided by the length.
    """

    source_beam: Axis | None
    source_beams: NamedTensor
    scores: NamedTensor
    normalize: bool = False

    @property
    def final_scores(self) -> NamedTensor:
        return self.scores


def scores_to_combine(
    base: Tensor,
    log_probs: Tensor,
    step: int,
    ended: Tensor | None = None,
    *,
    length_normalization: bool = True,
    exponent: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """What is added up to the new scores. An ended hypothesis goes on with label 0 only, at no cost.

    With length normalization the score of an ended hypothesis grows by ((step + 1) / step) ** exponent, so that one
    division by the longest length at the end of the search divides every score by its own.

    Args:
        base: (B, K) scores so far; K = 1 in the first step.
        log_probs: (B, K, V) of the next label.
        step: from 0.
        ended: (B, K).

    Returns:
        (B, K, 1) and (B, K, V).
    """
    if ended is not None:
        if length_normalization and step > 0:
            base = torch.where(ended, base * ((step + 1) / step) ** exponent, base)
        only_zero = torch.full_like(log_probs[0, 0], NEVER)
        only_zero[0] = 0.0
        log_probs = torch.where(ended[..., None], only_zero, log_probs)
    return base[..., None], log_probs


def best_successors(
    scores: Tensor,
    beam_size: int,
    gold: Tensor | None = None,
    exclusive: bool = False,
    keep_beams: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best (hypothesis, label) pairs.

    Args:
        scores: (B, K, V), combined.
        beam_size: N.
        gold: (B,) reference labels that the last hypothesis takes ("cheating").
        exclusive: the gold pair must not appear twice.
        keep_beams: every hypothesis goes on with its N / K best labels.

    Returns:
        hypotheses, labels and scores, (B, N) each, of equal ones the first; missing ones have score -inf.
    """
    batch, beam_in, num_labels = scores.shape
    if keep_beams:
        alone = None if gold is None else gold.repeat_interleave(beam_in)
        each = best_successors(scores.reshape(-1, 1, num_labels), beam_size // beam_in, alone, exclusive)
        labels, values = (part.reshape(batch, -1) for part in each[1:])
        parents = torch.arange(beam_in, device=scores.device).repeat_interleave(beam_size // beam_in)
        return parents.expand(batch, -1), labels, values
    flat = scores.reshape(batch, beam_in * num_labels)
    gold_index = None
    if gold is not None:
        gold_index = (beam_in - 1) * num_labels + gold.clamp(0, num_labels - 1).long()
        gold_score = flat.gather(1, gold_index[:, None])
        if exclusive:
            flat = flat.scatter(1, gold_index[:, None], -torch.inf)
    values, indices = top_k(flat, beam_size)
    size = indices.shape[1]
    if size < beam_size:
        extra = beam_size - size
        values = torch.nn.functional.pad(values, (0, extra), value=-torch.inf)
        indices = torch.nn.functional.pad(indices, (0, extra), value=0)
    if gold_index is not None:
        values = torch.cat([values[:, :-1], gold_score], 1)
        indices = torch.cat([indices[:, :-1], gold_index[:, None]], 1)
    return torch.div(indices, num_labels, rounding_mode="floor"), indices % num_labels, values
