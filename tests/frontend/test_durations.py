"""Durations of a hand-made alignment, and limits on durations."""

import pytest
import torch

import returnn_hydra.frontend as rf
from returnn_hydra.frontend.ambient import ambient_state
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.tensor import Tensor

B, C = Dim(2, name="batch"), Dim(4, name="classes")


@pytest.fixture(autouse=True)
def ambient():
    with ambient_state(run_ctx=None, behavior_version=30):
        yield


def dynamic(lengths, name="t"):
    return Dim(Tensor(name, dims=[B], dtype="int32", raw_tensor=torch.tensor(lengths, dtype=torch.int32)), name=name)


def path_of(rows, lengths):
    time = dynamic(lengths)
    raw = torch.tensor(rows, dtype=torch.int32)
    return Tensor("path", dims=[B, time], dtype="int32", sparse_dim=C, raw_tensor=raw), time


def rows_of(tensor, dim):
    lengths = dim.get_size_tensor().raw_tensor.tolist()
    return [row[:n] for row, n in zip(tensor.copy_transpose([B, dim]).raw_tensor.tolist(), lengths, strict=True)]


def test_states_of_a_ctc_path():
    path, time = path_of([[0, 0, 1, 1, 2, 0, 2, 2], [3, 3, 0, 9, 9, 9, 9, 9]], [8, 3])
    durations, dim = rf.ctc_durations_from_path(path=path, path_spatial_dim=time, blank_index=0)
    assert rows_of(durations, dim) == [[2, 2, 0, 1, 1, 2, 0], [0, 2, 1]]


def test_blanks_of_a_path_without_label_loops():
    path, time = path_of([[0, 0, 1, 1, 0, 2], [3, 0, 0, 3, 9, 9]], [6, 4])
    durations, dim = rf.ctc_no_label_loop_blank_durations_from_path(path=path, path_spatial_dim=time, blank_index=0)
    assert rows_of(durations, dim) == [[2, 0, 1, 0], [0, 2, 0]]


@pytest.mark.parametrize("given", ["targets_spatial_dim", "out_spatial_dim"])
def test_a_path_that_does_not_fit(given):
    path, time = path_of([[0, 1], [1, 0]], [2, 2])
    right, wrong = ([1, 1], [1, 2]) if given.startswith("targets") else ([3, 3], [3, 5])
    rf.ctc_durations_from_path(path=path, path_spatial_dim=time, blank_index=0, **{given: dynamic(right)})
    with pytest.raises(AssertionError, match=given):
        rf.ctc_durations_from_path(path=path, path_spatial_dim=time, blank_index=0, **{given: dynamic(wrong)})


def test_limited_repeats():
    time = dynamic([3, 2])
    raw = torch.tensor([[5, 0, 9], [1, 2, 8]], dtype=torch.int32)
    repeats = Tensor("repeats", dims=[B, time], dtype="int32", raw_tensor=raw)
    limited = rf.limit_repeats(repeats, in_spatial_dim=time, max_len_factor=2)
    # 6 frames allowed: one each for both labels, and 4 for a surplus of 12; the second sequence fits.
    assert rows_of(limited, time) == [[2, 0, 3], [1, 2]]
    with pytest.raises(ValueError, match="at least 1"):
        rf.limit_repeats(repeats, in_spatial_dim=time, max_len_factor=0.5)
