"""Alignments of labels to frames: scores and best paths, also without label loops.

Legend: T frames, N sequences, C classes, L labels, S = 2 L + 1 states (blank, label 1, blank, label 2, ..., blank).
Source: Graves et al. 2006; without label loop (one frame per label) Sak et al. 2017, recurrent neural aligner.
"""

from __future__ import annotations

import torch

from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.elementwise import log_softmax
from returnn_hydra.frontend.tensor import Tensor


def _states(labels: torch.Tensor, blank: int) -> torch.Tensor:
    """(N, L) -> (N, S)."""
    states = labels.new_full((labels.shape[0], 2 * labels.shape[1] + 1), blank)
    states[:, 1::2] = labels
    return states


def _steps(states: torch.Tensor, blank: int, label_loop: bool) -> torch.Tensor:
    """(N, S, 3) bool: whether a state can be reached from itself, from the one before, from the one before that."""
    n, s = states.shape
    is_blank = states == blank
    is_blank[:, 1::2] = False
    allowed = torch.zeros(n, s, 3, dtype=torch.bool, device=states.device)
    allowed[:, :, 0] = is_blank | label_loop
    allowed[:, 1:, 1] = True
    if s > 2:
        different = states[:, 2:] != states[:, :-2]
        allowed[:, 2:, 2] = ~is_blank[:, 2:] & (different | (not label_loop))
    return allowed


def _candidates(scores: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """(N, S) scores of the states -> (N, S, 3) scores of the ways into every state."""
    minus = scores.new_full((scores.shape[0], 2), float("-inf"))
    padded = torch.cat([minus, scores], dim=1)
    ways = torch.stack([scores, padded[:, 1:-1], padded[:, :-2]], dim=-1)
    return ways.masked_fill(~allowed, float("-inf"))


def _logsumexp(ways: torch.Tensor) -> torch.Tensor:
    """log(sum(exp)) over the last axis, with a zero gradient where all are -infinity."""
    highest = ways.detach().amax(-1)
    safe = torch.where(highest.isinf(), torch.zeros_like(highest), highest)
    total = (ways - safe[..., None]).exp().sum(-1)
    return torch.where(total > 0, total.clamp(min=1e-38).log() + safe, torch.full_like(total, float("-inf")))


def alignment_score(
    log_probs: torch.Tensor,
    labels: torch.Tensor,
    frames: torch.Tensor,
    label_counts: torch.Tensor,
    blank: int,
    max_approx: bool,
    label_loop: bool,
) -> torch.Tensor:
    """log-probability of all alignments (or of the best): (T, N, C), (N, L), (N,), (N,) -> (N,)."""
    states = _states(labels, blank)
    allowed = _steps(states, blank, label_loop)
    index = states.unsqueeze(0).expand(log_probs.shape[0], -1, -1)
    emissions = torch.gather(log_probs, 2, index)
    start = torch.full_like(emissions[0], float("-inf"))
    first = torch.arange(start.shape[1], device=start.device) < 2
    scores = torch.where(first, emissions[0], start)
    history = [scores]
    for frame in range(1, log_probs.shape[0]):
        ways = _candidates(scores, allowed)
        scores = (ways.amax(-1) if max_approx else _logsumexp(ways)) + emissions[frame]
        history.append(scores)
    device = log_probs.device
    rows = torch.arange(labels.shape[0], device=device)
    final = torch.stack(history)[(frames.to(device) - 1).clamp(min=0), rows]
    last = 2 * label_counts.to(device)
    ends = torch.stack([final[rows, last], final[rows, (last - 1).clamp(min=0)]], dim=-1)
    only_blank = (label_counts.to(device) == 0)[:, None] & torch.tensor([False, True], device=device)
    ends = ends.masked_fill(only_blank, float("-inf"))
    return ends.amax(-1) if max_approx else _logsumexp(ends)


def ctc_best_path(
    *,
    logits: Tensor,
    logits_normalized: bool = False,
    targets: Tensor,
    input_spatial_dim: Dim,
    targets_spatial_dim: Dim,
    blank_index: int,
    label_loop: bool = True,
) -> Tensor:
    """The label (or blank) of every frame in the best alignment of the targets."""
    classes = logits.feature_dim
    assert classes is not None
    batch = [d for d in logits.dims if d not in (input_spatial_dim, classes)]
    log_probs = logits if logits_normalized else log_softmax(logits, axis=classes)
    raw = log_probs.copy_compatible_to_dims_raw([input_spatial_dim, *batch, classes]).detach()
    flat = raw.reshape(raw.shape[0], -1, raw.shape[-1])
    labels = targets.copy_compatible_to_dims_raw([*batch, targets_spatial_dim], unbroadcast=True)
    labels = labels.reshape(flat.shape[1], -1).long()
    from returnn_hydra.frontend.loss import _lengths

    frames = _lengths(input_spatial_dim, batch, raw.shape[1:-1]).tolist()
    counts = _lengths(targets_spatial_dim, batch, raw.shape[1:-1]).tolist()
    paths = _best_paths(flat, labels, frames, counts, blank_index, label_loop)
    paths = paths.reshape(raw.shape[:-1]).to(torch.int32)
    return Tensor("best_path", dims=[input_spatial_dim, *batch], dtype="int32", sparse_dim=classes, raw_tensor=paths)


def _best_paths(
    log_probs: torch.Tensor, labels: torch.Tensor, frames: list[int], counts: list[int], blank: int, label_loop: bool
) -> torch.Tensor:
    states = _states(labels, blank)
    allowed = _steps(states, blank, label_loop)
    emissions = torch.gather(log_probs, 2, states.unsqueeze(0).expand(log_probs.shape[0], -1, -1))
    first = torch.arange(states.shape[1], device=states.device) < 2
    scores = [torch.where(first, emissions[0], torch.full_like(emissions[0], float("-inf")))]
    back = []
    for frame in range(1, log_probs.shape[0]):
        best, way = _candidates(scores[-1], allowed).max(-1)
        scores.append(best + emissions[frame])
        back.append(way)
    paths = states.new_full(log_probs.shape[:2], blank)
    for row, (length, count) in enumerate(zip(frames, counts, strict=True)):
        end = 2 * count
        final = scores[length - 1][row]
        state = end if count == 0 or final[end] >= final[end - 1] else end - 1
        for frame in range(length - 1, -1, -1):
            paths[frame, row] = states[row, state]
            if frame:
                state -= int(back[frame - 1][row, state])
    return paths
