"""Losses: cross entropy, CTC, edit distance."""

from __future__ import annotations

import math

import numpy as np
import torch

from returnn_hydra.frontend.arrays import shift_right
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.elementwise import cast, combine_bc, log_softmax, logical_and, safe_log
from returnn_hydra.frontend.indexing import gather, masked_select
from returnn_hydra.frontend.reduce import reduce_argmax, reduce_sum
from returnn_hydra.frontend.tensor import Tensor


def cross_entropy(*, estimated: Tensor, target: Tensor, axis: Dim, estimated_type: str) -> Tensor:
    """-log of the estimated probability of the target (class indices), or -sum target * log(estimated) (distribution).

    Args:
        estimated_type: "logits", "log-probs" or "probs".
    """
    if estimated_type == "logits":
        log_probs = log_softmax(estimated, axis=axis)
    elif estimated_type == "log-probs":
        log_probs = estimated
    elif estimated_type == "probs":
        log_probs = safe_log(estimated)
    else:
        raise ValueError(f"cross_entropy: estimated_type '{estimated_type}' is none of logits, log-probs, probs")
    if target.sparse_dim is not None:
        if estimated_type == "logits":  # then the axes are in the order of the target's, as in RETURNN
            log_probs = log_probs.copy_transpose([*target.dims, *(d for d in log_probs.dims if d not in target.dims)])
        return _negative(gather(log_probs, indices=target, axis=axis))
    return _negative(reduce_sum(combine_bc(target, "mul", log_probs), axis=axis))


def _negative(x: Tensor) -> Tensor:
    return x._new(x.dims, -x.raw_tensor, name="cross_entropy")


def ctc_loss(
    *,
    logits: Tensor,
    logits_normalized: bool = False,
    targets: Tensor,
    input_spatial_dim: Dim,
    targets_spatial_dim: Dim,
    blank_index: int,
    max_approx: bool = False,
    use_native_op: bool | None = None,
    label_loop: bool = True,
) -> Tensor:
    """-log of the sum over all alignments of the targets to the frames (Graves et al. 2006).

    Args:
        logits_normalized: `logits` are log-probabilities already.
        max_approx: only the best alignment.
        label_loop: a label may last for several frames (CTC); False: exactly one.

    Returns:
        One value per sequence. 0 (and no gradient) for a sequence that is too short for its targets.
    """
    classes = logits.feature_dim
    if classes is None:
        raise ValueError(f"ctc_loss: {logits} has no feature dim")
    batch = [d for d in logits.dims if d not in (input_spatial_dim, classes)]
    log_probs = logits if logits_normalized else log_softmax(logits, axis=classes)
    raw = log_probs.copy_compatible_to_dims_raw([input_spatial_dim, *batch, classes])
    labels = targets.copy_compatible_to_dims_raw([*batch, targets_spatial_dim], unbroadcast=True)
    frames = _lengths(input_spatial_dim, batch, raw.shape[1:-1])
    label_counts = _lengths(targets_spatial_dim, batch, raw.shape[1:-1])
    flat = raw.reshape(raw.shape[0], -1, raw.shape[-1])
    flat_labels = labels.reshape(flat.shape[1], -1).long()
    if max_approx or not label_loop:
        from returnn_hydra.frontend.ctc import alignment_score

        score = alignment_score(flat, flat_labels, frames, label_counts, blank_index, max_approx, label_loop)
        losses = -score
        losses = torch.where(losses.isinf(), torch.zeros_like(losses), losses)
    else:
        losses = torch.nn.functional.ctc_loss(
            flat, flat_labels, frames, label_counts, blank=blank_index, reduction="none", zero_infinity=True
        )
    return Tensor("ctc_loss", dims=batch, dtype=logits.dtype, raw_tensor=losses.reshape(raw.shape[1:-1]))


def _lengths(dim: Dim, batch: list[Dim], shape: torch.Size) -> torch.Tensor:
    """Lengths for every entry of the batch dims, flat."""
    lengths = dim.get_size_tensor()
    return lengths.copy_compatible_to_dims_raw(batch).expand(shape).reshape(-1).long()


def ctc_greedy_decode(
    logits: Tensor,
    *,
    in_spatial_dim: Dim,
    blank_index: int,
    out_spatial_dim: Dim | None = None,
    target_dim: Dim | None = None,
    wb_target_dim: Dim | None = None,
) -> tuple[Tensor, Dim]:
    """The best label of every frame, repetitions merged, blanks removed."""
    classes = wb_target_dim or logits.feature_dim
    assert classes is not None
    best = reduce_argmax(logits, axis=classes)
    before = shift_right(best, axis=in_spatial_dim, pad_value=blank_index)
    keep = logical_and(best != blank_index, best != before)
    labels, dim = masked_select(best, mask=keep, dims=[in_spatial_dim], out_dim=out_spatial_dim)
    labels = cast(labels, "int32")
    labels.sparse_dim = target_dim or classes
    return labels, dim


def edit_distance(a: Tensor, a_spatial_dim: Dim, b: Tensor, b_spatial_dim: Dim, *, dtype: str = "int32") -> Tensor:
    """Insertions, deletions and substitutions between label sequences (Levenshtein)."""
    batch = [d for d in a.dims if d != a_spatial_dim]
    batch += [d for d in b.dims if d != b_spatial_dim and d not in batch]
    shape = [d.get_dim_value() for d in batch]
    rows = a.copy_compatible_to_dims_raw([*batch, a_spatial_dim])
    columns = b.copy_compatible_to_dims_raw([*batch, b_spatial_dim])
    count = math.prod(shape)
    left = rows.expand(*shape, -1).reshape(count, rows.shape[-1]).cpu().numpy()
    right = columns.expand(*shape, -1).reshape(count, columns.shape[-1]).cpu().numpy()
    lengths = [_lengths(d, batch, torch.Size(shape)).cpu().numpy() for d in (a_spatial_dim, b_spatial_dim)]
    distances = _levenshtein(left, lengths[0], right, lengths[1])
    raw = torch.from_numpy(distances.reshape(shape)).to(getattr(torch, dtype)).to(a.raw_tensor.device)
    return Tensor("edit_distance", dims=batch, dtype=dtype, raw_tensor=raw)


def _levenshtein(a: np.ndarray, a_lengths: np.ndarray, b: np.ndarray, b_lengths: np.ndarray) -> np.ndarray:
    """(N, A), (N,), (N, B), (N,) -> (N,): the usual table, row by row for all sequences at once."""
    steps = np.arange(b.shape[1] + 1)
    row = np.broadcast_to(steps, (len(a), len(steps))).copy()
    result = row[np.arange(len(a)), b_lengths].copy()
    for index in range(a.shape[1]):
        new = np.empty_like(row)
        new[:, 0] = index + 1
        new[:, 1:] = np.minimum(row[:, 1:] + 1, row[:, :-1] + (a[:, index, None] != b))
        # An insertion costs 1 per column: the running minimum of (cost - column), plus the column.
        row = np.minimum.accumulate(new - steps, axis=1) + steps
        ended = a_lengths == index + 1
        result[ended] = row[ended, b_lengths[ended]]
    return result
