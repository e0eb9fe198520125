"""returnn.pretrain"""

from returnn_hydra.network.pretrain import WrapEpochValue

__all__ = ["WrapEpochValue"]
