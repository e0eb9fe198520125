"""returnn.torch.frontend"""

from returnn_hydra.frontend import bridge
from returnn_hydra.frontend.tensor import Tensor

__all__ = ["Tensor", "bridge"]
