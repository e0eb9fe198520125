"""The transducer's loss: all ways through the lattice of frames and labels.

Legend: B sequences, T frames, U labels, V classes; the lattice has T * (U+1) nodes (t, u): in frame t after u labels.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = -1e30
"""Log probability of what can't be; finite, so that differences of it have a gradient of zero instead of NaN."""


def transducer_loss(
    log_probs: Tensor, labels: Tensor, frame_lengths: Tensor, label_lengths: Tensor, blank_id: int
) -> Tensor:
    """-log p(labels | frames), summed over all alignments (Graves 2012, Sequence Transduction, equations 12-18).

    From node (t, u), blank leads to (t+1, u) and label u+1 to (t, u+1); the way ends with blank from (T-1, U). The
    nodes with equal n = t + u depend on those with n - 1 only: T + U steps, each over all u and sequences at once.

    Args:
        log_probs: (B, T, U+1, V), normalised over V.
        labels: (B, U).
        frame_lengths: (B,).
        label_lengths: (B,).
        blank_id: class that goes on to the next frame.

    Returns:
        (B,) in nats; of a sequence without frames 0 if it has no labels, else infinity.
    """
    num_seqs, num_frames, num_nodes, _ = log_probs.shape
    num_labels = num_nodes - 1
    blanks = log_probs[..., blank_id]  # (B, T, U+1)
    index = labels[:, None, :, None].expand(-1, num_frames, -1, -1)
    emits = log_probs[:, :, :num_labels].gather(3, index)[..., 0]  # (B, T, U)

    def on_diagonals(scores: Tensor) -> Tensor:
        """(B, T, X) -> (B, T+U, X): row n, column u is the score of node (n - u, u)."""
        num_columns = scores.shape[2]
        frame = torch.arange(num_frames + num_labels, device=scores.device)[:, None]
        frame = frame - torch.arange(num_columns, device=scores.device)
        inside = (frame >= 0) & (frame < num_frames)
        picked = scores.gather(1, frame.clamp(0, num_frames - 1).expand(num_seqs, -1, -1))
        return picked.masked_fill(~inside, LEAST)

    blanks, emits = on_diagonals(blanks), on_diagonals(emits)
    alpha = blanks.new_full((num_seqs, num_nodes), LEAST)  # log p of reaching node (n - u, u)
    alpha = torch.cat([alpha.new_zeros(num_seqs, 1), alpha[:, 1:]], dim=1)
    alphas = [alpha]
    for n in range(1, num_frames + num_labels):
        by_label = torch.cat([alpha.new_full((num_seqs, 1), LEAST), alpha[:, :-1] + emits[:, n - 1]], dim=1)
        alpha = torch.logaddexp(alpha + blanks[:, n - 1], by_label)
        alphas.append(alpha)
    row = torch.arange(num_seqs, device=labels.device)
    last = (frame_lengths - 1).clamp(min=0) + label_lengths
    nats = -(torch.stack(alphas, dim=1)[row, last, label_lengths] + blanks[row, last, label_lengths])
    without_frames = torch.where(label_lengths == 0, 0.0, torch.inf).to(nats)
    return torch.where(frame_lengths > 0, nats, without_frames)
