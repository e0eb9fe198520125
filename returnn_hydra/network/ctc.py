"""CTC with the blank as the last class, as the losses of network dicts need it.

Legend: B sequences, T frames, C classes (the last is the blank), S labels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from returnn_hydra.search.ctc_best_path import ctc_best_path
from returnn_hydra.search.ctc_prefix_search import CTCPrefixSearch
from returnn_hydra.search.scorer import Encoded


def ctc_neg_log_prob(log_probs: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor) -> Tensor:
    """-log p(labels | frames), summed over all alignments: (B,); 0 where none is possible.

    Args:
        log_probs: (B, T, C).
        lengths: (B,) frames.
        labels: (B, S).
        label_lengths: (B,).
    """
    return F.ctc_loss(
        log_probs.transpose(0, 1).float(),
        labels,
        lengths.cpu(),
        label_lengths.cpu(),
        blank=log_probs.shape[-1] - 1,
        reduction="none",
        zero_infinity=True,
    )


def ctc_viterbi_neg_log_prob(log_probs: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor) -> Tensor:
    """The same for the best alignment only; the gradient goes through that alignment."""
    batch, num_frames, num_classes = log_probs.shape
    blank = num_classes - 1
    states = torch.full((batch, 2 * labels.shape[1] + 1), blank, device=labels.device, dtype=torch.long)
    states[:, 1::2] = labels
    may_skip = torch.zeros_like(states, dtype=torch.bool)
    may_skip[:, 2:] = (states[:, 2:] != blank) & (states[:, 2:] != states[:, :-2])
    lengths, label_lengths = lengths.to(labels.device), label_lengths.to(labels.device)
    score = log_probs.new_full(states.shape, -torch.inf)
    score[:, 0] = 0.0  # before the first frame: it may enter state 0 or 1
    for t in range(num_frames):
        emission = log_probs[:, t].gather(1, states)
        from_one = F.pad(score, (1, 0), value=-torch.inf)[:, :-1]
        from_two = F.pad(score, (2, 0), value=-torch.inf)[:, :-2].masked_fill(~may_skip, -torch.inf)
        best = torch.maximum(torch.maximum(score, from_one), from_two) + emission
        score = torch.where((t < lengths)[:, None], best, score)
    ends = torch.stack([2 * label_lengths, (2 * label_lengths - 1).clamp(min=0)], dim=1)
    result = -score.gather(1, ends).max(1).values
    return torch.where(torch.isfinite(result), result, torch.zeros_like(result))


def ctc_decode(log_probs: Tensor, lengths: Tensor, beam_width: int) -> list[list[int]]:
    """Label sequences: the best path for `beam_width` 1, else a prefix beam search."""
    if beam_width == 1:
        found = ctc_best_path(log_probs, lengths.to(log_probs.device))
    else:
        search = CTCPrefixSearch(beam_size=beam_width)
        found = search(Encoded(lengths.to(log_probs.device), ctc_log_probs=log_probs))
    return [hypotheses[0].labels for hypotheses in found]
