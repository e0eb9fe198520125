"""Axes by number. What RETURNN answers was measured for these three tensors."""

import pytest
import torch

from returnn_hydra.frontend.dim import Dim, batch_dim
from returnn_hydra.frontend.tensor import Tensor

S = Dim(3, name="space", kind=Dim.Types.Spatial)
F = Dim(4, name="feat", kind=Dim.Types.Feature)
C = Dim(6, name="classes", kind=Dim.Types.Feature)


@pytest.fixture
def t():
    lengths = Tensor("t", dims=[batch_dim], dtype="int32", raw_tensor=torch.tensor([5, 3], dtype=torch.int32))
    return Dim(lengths, name="time")


@pytest.fixture
def dense(t):
    raw = torch.zeros(2, 3, 5, 4)
    dims = [batch_dim, S, t, F]
    return Tensor("x", dim_tags=dims, dtype="float32", time_dim_axis=2, feature_dim_axis=3, raw_tensor=raw)


@pytest.fixture
def labels(t):
    raw = torch.zeros(5, 2, dtype=torch.int32)
    return Tensor("y", dim_tags=[t, batch_dim], dtype="int32", sparse_dim=C, time_dim_axis=0, raw_tensor=raw)


def axes_of(tensor):
    return [d.name if d.dimension != 1 else 1 for d in tensor.dims], tensor.time_dim_axis, tensor.feature_dim_axis


def test_questions(dense, labels, t):
    assert (dense.shape_dense, dense.batch_shape_dense) == ((3, None, 4), (None, 3, None, 4))
    assert (labels.shape_dense, labels.ndim_dense, labels.batch_ndim_dense) == ((None, 6), 2, 3)
    assert dense.dim_tags_sparse == (batch_dim, S, t)
    assert (dense.is_batch_major, dense.is_time_major, dense.is_batch_feature_major) == (True, False, False)
    assert labels.is_time_major
    assert dense.time_dimension() == labels.time_dimension() == 5
    assert [dense.get_batch_axis(1), labels.get_batch_axis(1), labels.get_batch_axis(0)] == [2, 2, 0]
    assert [labels.get_batch_axis_excluding_batch(n) for n in (0, 1)] == [0, None]
    assert (dense.time_dim_axis_excluding_batch, labels.time_dim_axis_excluding_batch) == (1, 0)
    assert {n: size.tolist() for n, size in dense.size_placeholder.items()} == {1: [5, 3]}
    assert dense.get_axes(exclude_time=True, exclude_batch=True, exclude_feature=True) == [1]
    assert (dense.get_dynamic_axes(), dense.get_static_axes()) == ([2], [1, 3])
    assert (dense.is_axis_dynamic(2), dense.is_axis_dynamic(0), dense.is_time_axis_dynamic()) == (True, False, True)
    assert dense.has_dynamic_size(2)
    assert dense.get_dynamic_size(2).tolist() == [5, 3]
    assert not dense.has_dynamic_size(1)
    assert (dense.get_feature_batch_axes(), labels.get_feature_batch_axes()) == ([3], [])
    assert dense.get_axes_by_tag_name("E") == [1, 2, 3]
    assert dense.get_axis_by_tag_name("tim") == 2
    assert dense.get_size_dim_tag(0) is t
    assert dense.get_batch_shape(7) == (7, 3, None, 4)
    assert dense.get_special_axes_dict(False, True) == {"time_dim_axis": 1, "feature_dim_axis": 2}
    assert dense.is_same_time_dim(labels)
    assert dense.find_matching_dims(S) == [1]
    assert labels.get_out_permutation_to_dims([F, t, batch_dim]) == [-1, 0, 1]


def test_copies(dense, labels):
    assert axes_of(dense.copy_with_batch_dim_axis(1)) == (["space", "batch", "time", "feat"], 2, 3)
    assert axes_of(dense.copy_with_time_dim_axis(0)) == (["time", "batch", "space", "feat"], 0, 3)
    assert axes_of(dense.copy_with_feature_dim_axis(0)) == (["feat", "batch", "space", "time"], 3, 0)
    assert axes_of(dense.copy_as_batch_feature_major()) == (["batch", "feat", "space", "time"], 3, 1)
    assert axes_of(dense.copy_as_bt_or_tb_major()) == (["batch", "time", "space", "feat"], 1, 3)
    assert axes_of(labels.copy_as_bt_or_tb_major()) == (["time", "batch"], 0, None)
    assert dense.get_placeholder_as_time_major().shape == (5, 2, 3, 4)
    assert labels.get_placeholder_as_batch_major().shape == (2, 5)
    assert axes_of(dense.copy_template_excluding_time_dim()) == (["batch", "space", "feat"], None, 2)
    assert axes_of(dense.copy_template_excluding_spatial_dim(0)) == (["batch", "time", "feat"], 1, 2)
    assert axes_of(dense.copy_add_feature_dim()) == (["batch", "space", "time", "feat", 1], 2, 4)
    assert axes_of(dense.copy_add_spatial_dim()) == (["batch", "space", "time", 1, "feat"], 2, 4)
    assert axes_of(labels.copy_add_feature_dim()) == (["time", 1, "batch"], 0, None)
    assert axes_of(labels.copy_add_spatial_dim(0)) == ([1, "time", "batch"], 1, None)


def test_what_is_not_there(dense, labels):
    with pytest.raises(ValueError, match="no feature axis"):
        labels.copy_with_feature_dim_axis(0)
    with pytest.raises(ValueError, match="has no lengths"):
        dense.get_dynamic_size(1)
    with pytest.raises(ValueError, match="3 axes have 'e'"):
        dense.get_axis_by_tag_name("e")
    assert labels.mark_same_time(F) is False
    with pytest.raises(ValueError, match="among its dims"):
        labels.mark_same_time({F}, must_match=True)
    assert dense.mark_same_time(S)
    assert dense.time_dim_axis == 1
