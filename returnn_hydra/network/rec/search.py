"""A step of beam search, as `choice` layers do it.

Legend: B sequences, K hypotheses that come in, N that go out, V labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from returnn_hydra.network.axis import Axis
from returnn_hydra.network.named_tensor import NamedTensor

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


def filter_ended(scores: Tensor, ended: Tensor) -> Tensor:
    """Ended hypotheses (B, K) only go on with label 0, at no cost: (B, K, V)."""
    only_zero = torch.full((scores.shape[-1],), NEVER, device=scores.device, dtype=scores.dtype)
    only_zero[0] = 0.0
    return torch.where(ended[..., None], only_zero, scores)


def best_successors(
    scores: Tensor, beam_size: int, gold: Tensor | None = None, exclusive: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The best (hypothesis, label) pairs.

    Args:
        scores: (B, K, V), combined.
        beam_size: N.
        gold: (B,) reference labels that the last hypothesis takes ("cheating").
        exclusive: the gold pair must not appear twice.

    Returns:
        hypotheses, labels and scores, (B, N) each; missing ones have score -inf.
    """
    batch, beam_in, num_labels = scores.shape
    flat = scores.reshape(batch, beam_in * num_labels)
    gold_index = None
    if gold is not None:
        gold_index = (beam_in - 1) * num_labels + gold.clamp(0, num_labels - 1).long()
        gold_score = flat.gather(1, gold_index[:, None])
        if exclusive:
            flat = flat.scatter(1, gold_index[:, None], -torch.inf)
    size = min(beam_size, flat.shape[1])
    values, indices = torch.topk(flat, size, dim=1)
    if size < beam_size:
        extra = beam_size - size
        values = torch.nn.functional.pad(values, (0, extra), value=-torch.inf)
        indices = torch.nn.functional.pad(indices, (0, extra), value=0)
    if gold_index is not None:
        values = torch.cat([values[:, :-1], gold_score], 1)
        indices = torch.cat([indices[:, :-1], gold_index[:, None]], 1)
    return torch.div(indices, num_labels, rounding_mode="floor"), indices % num_labels, values
