"""returnn.frontend.types"""

from returnn_hydra.frontend import RawTensorTypes

__all__ = ["RawTensorTypes"]
