"""The parameters of a network, under the names that RETURNN gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from returnn_hydra.network.errors import NetworkError, nearest
from returnn_hydra.network.initializers import initial_values


def torch_name(path: str) -> str:
    """torch forbids dots in parameter names."""
    return path.replace(".", "%2E")


def tf_name(name: str) -> str:
    return name.replace("%2E", ".")


class ParameterStore:
    """Makes parameters on demand while the network is built, and only looks them up later.

    Args:
        module: holds them; after building, `frozen` is set, and no new ones come up.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.frozen = False
        self.by_layer: dict[str, list[str]] = {}
        self.blocks: dict[str, Sequence[Sequence[int]]] = {}
        """Parts that an axis consists of (gates, sources), by the parameter's path; for `carry_over`."""
        self.copy_modes: dict[str, str] = {}
        """`custom_param_importer` of the layer, by the parameter's path."""
        self.files: dict[str, Any] = {}
        """`load_on_init` of sub-networks, by the prefix of their parameters' paths."""

    def get(self, layer: str, name: str, shape: tuple[int, ...], init: Any, trainable: bool, buffer: bool) -> Tensor:
        """The parameter `layer/name`.

        Args:
            layer: path of the layer that owns it.
            init: see `initial_values`.
            trainable: False: a parameter without gradient.
            buffer: True: running statistics, not a parameter.

        Raises:
            NetworkError: it exists in another shape.
        """
        path = f"{layer}/{name}" if layer else name
        found = self.find(path)
        if found is None:
            if self.frozen:
                raise NetworkError(
                    f"{layer}: parameter {name!r} did not come up when the network was built; name the layer in "
                    "NetworkModel(layers=...), or set is_output_layer"
                )
            values = initial_values(init, shape, path)
            if buffer:
                self.module.register_buffer(torch_name(path), values)
            else:
                self.module.register_parameter(torch_name(path), nn.Parameter(values, requires_grad=trainable))
            found = self.find(path)
            assert found is not None
        if tuple(found.shape) != shape:
            raise NetworkError(f"{path}: has shape {tuple(found.shape)}, but {shape} is needed here")
        owners = self.by_layer.setdefault(layer, [])
        if path not in owners:
            owners.append(path)
        return found

    def find(self, path: str) -> Tensor | None:
        name = torch_name(path)
        found = self.module._parameters.get(name)
        return found if found is not None else self.module._buffers.get(name)

    def require(self, path: str, where: str) -> Tensor:
        found = self.find(path)
        if found is None:
            raise NetworkError(f"{where}: there is no parameter {path!r}{nearest(path, self.names())}")
        return found

    def names(self) -> list[str]:
        return [tf_name(name) for name in (*self.module._parameters, *self.module._buffers)]

    def below(self, layer: str) -> list[Tensor]:
        """All trainable or frozen parameters (no statistics) of a layer and of its sub-layers."""
        paths: list[str] = []
        for owner, names in self.by_layer.items():
            if owner == layer or owner.startswith(f"{layer}/"):
                paths += [path for path in names if path not in paths]
        found = [self.module._parameters.get(torch_name(path)) for path in paths]
        return [parameter for parameter in found if parameter is not None]


def noisy(parameter: Tensor, noise: float, dropout: float, min_ndim: int) -> Tensor:
    """`param_variational_noise` and `param_dropout`, in training."""
    if noise:
        parameter = parameter + torch.randn_like(parameter) * noise
    if dropout and parameter.dim() >= min_ndim:
        parameter = nn.functional.dropout(parameter, dropout, training=True)
    return parameter
