"""returnn.tf.util.data"""

from typing import Any

from returnn_hydra.compat.shim.names_only import name_only
from returnn_hydra.frontend.dim import Dim, FeatureDim, SpatialDim, batch_dim, single_step_dim
from returnn_hydra.network.tf_face.data import DeclaredData as Data


class DimensionTag(Dim):
    """What `Dim` was called before 2022: the kind comes first, and the size may be left out."""

    def __init__(self, kind: Any = None, description: str | None = None, dimension: Any = None, **options: Any) -> None:
        super().__init__(dimension, name=description, kind=kind, **options)


BatchInfo = name_only("returnn.tf.util.data", "BatchInfo")
SearchBeam = name_only("returnn.tf.util.data", "SearchBeam")

__all__ = [
    "BatchInfo",
    "Data",
    "Dim",
    "DimensionTag",
    "FeatureDim",
    "SearchBeam",
    "SpatialDim",
    "batch_dim",
    "single_step_dim",
]
