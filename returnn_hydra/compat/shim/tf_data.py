"""returnn.tf.util.data"""

from returnn_hydra.compat.shim.names_only import name_only
from returnn_hydra.frontend.dim import Dim, FeatureDim, SpatialDim, batch_dim, single_step_dim
from returnn_hydra.network.tf_face.data import UserData as Data

DimensionTag = Dim
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
