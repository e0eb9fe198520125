"""returnn.tensor"""

from returnn_hydra.frontend.dim import (
    Dim,
    FeatureDim,
    ImplicitDim,
    MarkedDim,
    SpatialDim,
    VerifyOutShapeException,
    batch_dim,
    single_step_dim,
)
from returnn_hydra.frontend.tensor import Tensor
from returnn_hydra.frontend.tensor_dict import TensorDict

__all__ = [
    "Dim",
    "FeatureDim",
    "ImplicitDim",
    "MarkedDim",
    "SpatialDim",
    "Tensor",
    "TensorDict",
    "VerifyOutShapeException",
    "batch_dim",
    "single_step_dim",
]
