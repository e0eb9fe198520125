"""Network dicts (RETURNN's `network`) on torch."""

from returnn_hydra.network.errors import NetworkError
from returnn_hydra.network.model import NetworkModel, NetworkResult
from returnn_hydra.network.registry import register_layer

__all__ = ["NetworkError", "NetworkModel", "NetworkResult", "register_layer"]
