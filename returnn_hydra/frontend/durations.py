"""Durations: how many frames every label (or blank) of a sequence takes, from alignments, and limits on them."""

from __future__ import annotations

import torch

from returnn_hydra.frontend.arrays import shift_right
from returnn_hydra.frontend.create import ones_like
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.elementwise import cast, cumsum, logical_and, maximum, where
from returnn_hydra.frontend.indexing import scatter, slice
from returnn_hydra.frontend.loop import assert_
from returnn_hydra.frontend.reduce import reduce_max, reduce_sum
from returnn_hydra.frontend.tensor import Tensor


def ctc_durations_from_path(
    *,
    path: Tensor,
    path_spatial_dim: Dim,
    blank_index: int,
    targets_spatial_dim: Dim | None = None,
    out_spatial_dim: Dim | None = None,
    check_dims: bool = True,
    stop_on_failed_check: bool = True,
) -> tuple[Tensor, Dim]:
    """Frames of every state of a CTC alignment: blank, label 1, blank, label 2, ..., blank.

    Args:
        path: (..., T) the label or blank of every frame.
        targets_spatial_dim: the dim of the N labels; default: a new one.
        out_spatial_dim: the dim of the 2 N + 1 states; default: derived.
        check_dims: whether both must fit the path.

    Returns:
        (..., 2 N + 1) int32, and its dim.
    """
    before = shift_right(path, axis=path_spatial_dim, pad_value=blank_index)
    begins = logical_and(path != blank_index, path != before).copy_masked(False, dims=[path_spatial_dim])
    counts = reduce_sum(cast(begins, "int32"), axis=path_spatial_dim)
    labels = _labels_dim(counts, targets_spatial_dim, check_dims, stop_on_failed_check)
    if out_spatial_dim is None:
        out_spatial_dim = labels * 2 + 1
    elif check_dims:
        _check(out_spatial_dim, counts * 2 + 1, "out_spatial_dim: not 2 N + 1 states", stop_on_failed_check)
    states = cumsum(cast(begins, "int32"), spatial_dim=path_spatial_dim) * 2 + where(path == blank_index, 0, -1)
    return _count(states, path_spatial_dim, out_spatial_dim), out_spatial_dim


def ctc_no_label_loop_blank_durations_from_path(
    *,
    path: Tensor,
    path_spatial_dim: Dim,
    blank_index: int,
    targets_spatial_dim: Dim | None = None,
    out_spatial_dim: Dim | None = None,
    check_dims: bool = True,
    stop_on_failed_check: bool = True,
) -> tuple[Tensor, Dim]:
    """Frames of every blank of an alignment with one frame per label: before label 1, before label 2, ..., at the end.

    Returns:
        (..., N + 1) int32, and its dim.
    """
    is_label = (path != blank_index).copy_masked(False, dims=[path_spatial_dim])
    counts = reduce_sum(cast(is_label, "int32"), axis=path_spatial_dim)
    labels = _labels_dim(counts, targets_spatial_dim, check_dims, stop_on_failed_check)
    if out_spatial_dim is None:
        out_spatial_dim = labels + 1
    elif check_dims:
        _check(out_spatial_dim, counts + 1, "out_spatial_dim: not N + 1 blanks", stop_on_failed_check)
    blanks = cumsum(cast(is_label, "int32"), spatial_dim=path_spatial_dim)
    is_blank = logical_and(path == blank_index, path_spatial_dim.get_mask(device=path.device))
    elsewhere = reduce_max(counts, axis=counts.dims) + 1
    with_rest = out_spatial_dim + 1
    durations = _count(where(is_blank, blanks, elsewhere), path_spatial_dim, with_rest)
    return slice(durations, axis=with_rest, size=out_spatial_dim)


def _labels_dim(counts: Tensor, dim: Dim | None, check: bool, stop: bool) -> Dim:
    if dim is None:
        raw = counts.raw_tensor.to("cpu", torch.int32)
        return Dim(Tensor("num_labels", dims=counts.dims, dtype="int32", raw_tensor=raw), name="target_spatial")
    if check:
        _check(dim, counts, "targets_spatial_dim: not the number of labels in the path", stop)
    return dim


def _check(dim: Dim, expected: Tensor, message: str, stop: bool) -> None:
    assert_(dim.get_size_tensor(device=expected.device) == expected, message, stop=stop)


def _count(states: Tensor, frames: Dim, out_dim: Dim) -> Tensor:
    return scatter(ones_like(states), indices=states, indices_dim=frames, out_dim=out_dim)


def limit_repeats(repeats: Tensor, *, in_spatial_dim: Dim, max_len_factor: float) -> Tensor:
    """Smaller durations for sequences that would become more than `max_len_factor` times as long.

    A duration that is not 0 stays at least 1; what is above 1 is scaled by one factor per sequence and rounded down.

    Args:
        repeats: (..., T) int32.
        max_len_factor: at least 1.
    """
    if max_len_factor < 1:
        raise ValueError(f"limit_repeats: max_len_factor must be at least 1, it is {max_len_factor}")
    repeats = repeats.copy_masked(0, dims=[in_spatial_dim])
    kept = cast(repeats > 0, "int32")
    surplus = repeats - kept

    def total(counts: Tensor) -> Tensor:
        return cast(reduce_sum(counts, axis=in_spatial_dim), "float32")

    allowed = cast(in_spatial_dim.get_size_tensor(device=repeats.device), "float32") * float(max_len_factor)
    budget = maximum(allowed - total(kept), 0.0)
    scale = where(total(repeats) > allowed, budget / maximum(total(surplus), 1.0), 1.0)
    return (kept + cast(cast(surplus, "float32") * scale, "int32")).copy_masked(0, dims=[in_spatial_dim])
