"""Label sequences with boundaries, as language models and decoders need them.

Legend: B sequences, S labels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from returnn_hydra.batch import sequence_mask


def prepend(labels: Tensor, bos_id: int) -> Tensor:
    """What a model has seen before each label: (B, S) -> (B, S+1)."""
    return torch.cat([labels.new_full((len(labels), 1), bos_id), labels], dim=1)


def append(labels: Tensor, lengths: Tensor, eos_id: int) -> Tensor:
    """What a model has to say: the labels, then the end behind the last real one; (B, S) -> (B, S+1)."""
    padded = torch.cat([labels, labels.new_zeros(len(labels), 1)], dim=1)
    return padded.scatter(1, lengths[:, None], eos_id)


def edit_distances(hyps: Tensor, hyp_lengths: Tensor, refs: Tensor, ref_lengths: Tensor) -> Tensor:
    """Levenshtein distance of each pair: fewest substitutions, deletions and insertions; (B,) int64.

    The table of a batch is filled row by row.

    Args:
        hyps: (B, S').
        hyp_lengths: (B,).
        refs: (B, S).
        ref_lengths: (B,).
    """
    columns = torch.arange(refs.shape[1] + 1, device=refs.device)
    row = columns.expand(len(refs), -1)  # no label of the hypothesis: j deletions
    real = sequence_mask(hyp_lengths, hyps.shape[1])
    for index in range(hyps.shape[1]):
        new_row = next_edit_row(row, refs != hyps[:, index, None])
        row = torch.where(real[:, index, None], new_row, row)
    return row.gather(1, ref_lengths[:, None])[:, 0]


def next_edit_row(row: Tensor, differs: Tensor) -> Tensor:
    """Distances of a hypothesis with one more label to all beginnings of a reference: (..., S+1) -> (..., S+1).

    Deletions depend on the left neighbour; with d[j] = min over k <= j of (t[k] + j - k) a running minimum does them
    for a whole row.

    Args:
        row: distances of the hypothesis without the label.
        differs: whether the label differs from each one of the reference, (..., S).
    """
    columns = torch.arange(row.shape[-1], device=row.device)
    best = torch.cat([row[..., :1] + 1, torch.minimum(row[..., 1:] + 1, row[..., :-1] + differs)], dim=-1)
    return (best - columns).cummin(dim=-1).values + columns
