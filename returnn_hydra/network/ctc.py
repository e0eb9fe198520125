"""CTC with the blank as the last class, as the losses of network dicts need it.

Legend: B sequences, T frames, C classes (the last is the blank), S labels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from returnn_hydra.search.ctc_best_path import ctc_best_path
from returnn_hydra.search.ctc_prefix_search import CTCPrefixSearch
from returnn_hydra.search.scorer import Encoded

IMPOSSIBLE = -1e30


def ctc_neg_log_prob(log_probs: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor) -> Tensor:
    """-log p(labels | frames), summed over all alignments: (B,); 0 where none is possible.

    Args:
        log_probs: (B, T, C).
        lengths: (B,) frames.
        labels: (B, S).
        label_lengths: (B,).
    """
    log_probs = log_probs if log_probs.dtype == torch.float64 else log_probs.float()
    return F.ctc_loss(
        log_probs.transpose(0, 1),
        labels,
        lengths.cpu(),
        label_lengths.cpu(),
        blank=log_probs.shape[-1] - 1,
        reduction="none",
        zero_infinity=True,
    )


def ctc_viterbi_neg_log_prob(log_probs: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor) -> Tensor:
    """The same for the best alignment only; the gradient goes through that alignment."""
    return _over_paths(log_probs, lengths, labels, label_lengths, lambda scores: scores.amax(0))


def ctc_posteriors(log_scores: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of every class at every frame, given the labels: (B, T, C); and -log of the sum over all paths: (B,).

    The scores need not be normalised. The posteriors are the gradient of the log of the sum (Baum-Welch).
    """
    with torch.enable_grad():
        scores = log_scores.detach().requires_grad_()
        total = _over_paths(scores, lengths, labels, label_lengths, lambda paths: torch.logsumexp(paths, 0))
        (gradient,) = torch.autograd.grad(-total.sum(), scores)
    return gradient, total.detach()


def _over_paths(
    log_probs: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor, join: Callable[[Tensor], Tensor]
) -> Tensor:
    """-log score of all paths, where `join` unites the scores (paths, ...) of those that meet; 0 if there is none."""
    batch, num_frames, num_classes = log_probs.shape
    blank = num_classes - 1
    states = torch.full((batch, 2 * labels.shape[1] + 1), blank, device=labels.device, dtype=torch.long)
    states[:, 1::2] = labels
    may_skip = torch.zeros_like(states, dtype=torch.bool)
    may_skip[:, 2:] = (states[:, 2:] != blank) & (states[:, 2:] != states[:, :-2])
    lengths, label_lengths = lengths.to(labels.device), label_lengths.to(labels.device)
    # -1e30 instead of -inf: the gradient of a logsumexp over nothing but -inf would be NaN
    score = log_probs.new_full(states.shape, IMPOSSIBLE)
    score[:, 0] = 0.0  # before the first frame: it may enter state 0 or 1
    for t in range(num_frames):
        emission = log_probs[:, t].gather(1, states)
        from_one = F.pad(score, (1, 0), value=IMPOSSIBLE)[:, :-1]
        from_two = F.pad(score, (2, 0), value=IMPOSSIBLE)[:, :-2].masked_fill(~may_skip, IMPOSSIBLE)
        joined = join(torch.stack([score, from_one, from_two])) + emission
        score = torch.where((t < lengths)[:, None], joined, score)
    last = 2 * label_lengths[:, None]
    final = score.gather(1, last)
    before = score.gather(1, (last - 1).clamp(min=0)).masked_fill(last == 0, IMPOSSIBLE)
    result = -join(torch.stack([final, before]))[:, 0]
    return torch.where(result < -IMPOSSIBLE / 2, result, torch.zeros_like(result))


def ctc_decode(log_probs: Tensor, lengths: Tensor, beam_width: int) -> list[list[int]]:
    """Label sequences: the best path for `beam_width` 1, else a prefix beam search."""
    if beam_width == 1:
        found = ctc_best_path(log_probs, lengths.to(log_probs.device))
    else:
        search = CTCPrefixSearch(beam_size=beam_width)
        found = search(Encoded(lengths.to(log_probs.device), ctc_log_probs=log_probs))
    return [hypotheses[0].labels for hypotheses in found]
