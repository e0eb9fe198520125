"""Streams whose axes are objects of the config, as in configs with chunking of several streams."""

from __future__ import annotations

import pytest

from returnn_hydra.compat.import_hook import returnn_imports
from returnn_hydra.compat.stream_specs import stream_nodes

with returnn_imports():
    from returnn.tf.util.data import Dim, DimensionTag, FeatureDim, SpatialDim, batch_dim
    from TFUtil import DimensionTag as OldDimensionTag


def test_tags_of_old_configs_begin_with_their_kind() -> None:
    tag = DimensionTag(DimensionTag.Types.Spatial, description="time")
    assert OldDimensionTag is DimensionTag and isinstance(tag, Dim)
    assert tag.dimension is None and tag.is_spatial_dim()


@pytest.mark.parametrize("key", ["t", "T", "time"])
def test_streams_with_the_same_time_axis(key: str) -> None:
    time = DimensionTag(kind=DimensionTag.Types.Spatial, description="time")
    nodes = stream_nodes(
        {
            "data": {"dim": 9, "shape": (None, 9), "same_dim_tags_as": {key: time}},
            "classes": {"dim": 5, "sparse": True, "same_dim_tags_as": {key: time}},
            "words": {"dim": 7, "sparse": True},
        },
        "extern_data",
    )
    assert nodes["classes"] == {"dim": 5, "sparse": True, "same_length_as": "data"}
    assert "same_length_as" not in nodes["data"] and "same_length_as" not in nodes["words"]


def test_streams_by_their_axes() -> None:
    time = SpatialDim("time")
    nodes = stream_nodes(
        {
            "data": {"dim_tags": [batch_dim, time, FeatureDim("feature", 9)]},
            "classes": {"dim_tags": [batch_dim, time], "sparse_dim": FeatureDim("classes", 4)},
            "raw": {"dim_tags": [batch_dim, SpatialDim("samples")], "dtype": "float32"},
        },
        "extern_data",
    )
    assert nodes == {
        "data": {"dim": 9, "shape": [None, 9]},
        "classes": {"dim": 4, "shape": [None], "sparse": True, "same_length_as": "data"},
        "raw": {"shape": [None], "dtype": "float32"},
    }
