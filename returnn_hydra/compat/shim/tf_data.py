"""returnn.tf.util.data"""

from returnn_hydra.frontend.dim import Dim, FeatureDim, SpatialDim, batch_dim, single_step_dim
from returnn_hydra.network.tf_face.data import UserData as Data

DimensionTag = Dim

__all__ = ["Data", "Dim", "DimensionTag", "FeatureDim", "SpatialDim", "batch_dim", "single_step_dim"]
