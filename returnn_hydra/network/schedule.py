"""Networks that change between epochs: `get_network(epoch)`, and `pretrain`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from returnn_hydra.network.call import COPY_MODES
from returnn_hydra.network.errors import NetworkError
from returnn_hydra.network.pretrain import Pretrain

Construct = Callable[..., Mapping[str, Any] | None]
_PRETRAIN_KEYS = {
    "pretrain_copy_output_layer": "copy_output_layer",
    "pretrain_greedy": "greedy",
    "pretrain_repetitions": "repetitions",
    "pretrain_construction_algo": "construction_algo",
}


@dataclass(frozen=True)
class Stage:
    """Epochs in a row with the same network and the same `#config`."""

    first: int
    last: int
    config: Mapping[str, Any]
    """`#config`: values that replace those of the config, learning rates aside."""
    new_network: bool
    """It begins with another network than the stage before had."""
    copy_mode: str | None
    """How parameters are taken over: by name where the shapes agree, of another shape in parts (`subset`), not."""
    resets_outputs: bool
    """The parameters of layers with a loss begin anew."""


class NetworkSchedule:
    """Which network dict, and which config values, hold in an epoch.

    Args:
        network: the (final) network dict.
        get_network: makes the dict of an epoch instead: `get_network(epoch=...)`.
        pretrain: the options of `Pretrain`; "default" or True for its defaults.

    Raises:
        NetworkError: neither or both of `network` and `get_network`, or unknown options.
    """

    def __init__(
        self,
        network: Mapping[str, Any] | None = None,
        get_network: Construct | None = None,
        pretrain: Any = None,
    ) -> None:
        if (network is None) == (get_network is None):
            raise NetworkError("give either 'network' or 'get_network'")
        self._network = network
        self._get_network = get_network
        self.pretrain = self._pretrain(pretrain)

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> NetworkSchedule:
        """By a config's `network`, `get_network`, `pretrain` and `pretrain_*`."""
        network, function = values.get("network"), values.get("get_network")
        if callable(network) and function is None:
            network, function = None, network
        pretrain = values.get("pretrain")
        if pretrain:
            options = dict(pretrain) if isinstance(pretrain, Mapping) else {}
            for key, option in _PRETRAIN_KEYS.items():
                if values.get(key) is not None:
                    options.setdefault(option, values[key])
            pretrain = options if isinstance(pretrain, Mapping) or pretrain in (True, "default") else pretrain
        return cls(None if function is not None else network, function, pretrain)

    def _pretrain(self, value: Any) -> Pretrain | None:
        if value is None or value is False or value == "":
            return None
        if value in (True, "default"):
            value = {}
        if not isinstance(value, Mapping):
            raise NetworkError(f"pretrain = {value!r} is not supported; expected 'default' or a dict of options")
        if self._network is None:
            raise NetworkError("pretrain needs a 'network'; get_network(epoch) makes any network of an epoch by itself")
        return Pretrain(self._network, value)

    @property
    def num_pretrain_epochs(self) -> int:
        return len(self.pretrain.epochs) if self.pretrain is not None else 0

    def network(self, epoch: int) -> dict[str, Any]:
        """The dict of an epoch (from 1), `#...` keys included."""
        if self._get_network is not None:
            return dict(_called(self._get_network, epoch))
        if self.pretrain is not None:
            return self.pretrain.epochs[min(epoch, len(self.pretrain.epochs)) - 1]
        assert self._network is not None
        return dict(self._network)

    def learning_rate(self, epoch: int) -> float | None:
        """The rate that `#config` gives this epoch."""
        if self._get_network is None and epoch > self.num_pretrain_epochs:
            return None
        return self._config_of(epoch).get("learning_rate")

    def stages(self, first: int, last: int) -> Iterator[Stage]:
        """The stages of these epochs."""
        begin = first
        networks = {epoch: self.network(epoch) for epoch in range(first, last + 1)}
        for epoch in range(first, last + 1):
            goes_on = epoch < last and not self._differs(networks[epoch], networks[epoch + 1], epoch + 1)
            if goes_on:
                continue
            new = begin == first or not same(_layers(networks[begin - 1]), _layers(networks[begin]))
            yield self._stage(begin, epoch, networks[begin], new)
            begin = epoch + 1

    def _stage(self, first: int, last: int, network: Mapping[str, Any], new: bool) -> Stage:
        by_pretrain = self.pretrain if first <= self.num_pretrain_epochs else None
        if network.get("#trainable", True) is not True:
            raise NetworkError("#trainable = False is not supported; set 'trainable': False in the layers")
        mode = network.get("#copy_param_mode", by_pretrain.copy_param_mode if by_pretrain else None)
        if mode not in COPY_MODES:
            raise NetworkError(f"#copy_param_mode = {mode!r}, expected one of {COPY_MODES}")
        resets = by_pretrain is not None and not by_pretrain.copies_output_layers
        config = {key: value for key, value in self._config_of(first).items() if key != "learning_rate"}
        return Stage(first, last, config, new, mode, resets)

    def _differs(self, one: Mapping[str, Any], other: Mapping[str, Any], epoch: int) -> bool:
        configs = [
            {key: value for key, value in self._config_of(number).items() if key != "learning_rate"}
            for number in (epoch - 1, epoch)
        ]
        return not same(_layers(one), _layers(other)) or not same(*configs)

    def _config_of(self, epoch: int) -> dict[str, Any]:
        """`#config`; that of the last pretraining epoch stays. A network that never changes has none, as in RETURNN."""
        if self._get_network is None and self.pretrain is None:
            return {}
        return dict(self.network(epoch).get("#config") or {})


def _called(function: Construct, epoch: int) -> Mapping[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    takes_epoch = takes_any or any(p.name == "epoch" for p in parameters)
    network = function(**({"epoch": epoch} if takes_epoch else {}))
    if not isinstance(network, Mapping):
        raise NetworkError(f"get_network(epoch={epoch}) gave a {type(network).__name__}, expected a dict")
    return network


def _layers(network: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in network.items() if not name.startswith("#")}


def same(one: Any, other: Any) -> bool:
    """Whether two networks mean the same; functions are compared by what they do and hold."""
    if one is other:
        return True
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if inspect.isfunction(one) and inspect.isfunction(other):
        return one.__code__ == other.__code__ and same(_held(one), _held(other))
    if type(one).__name__ == type(other).__name__ == "Dim":
        return (one.kind, one.dimension) == (other.kind, other.dimension)
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    return type(one) is type(other) and bool(one == other)


def _held(function: Any) -> list[Any]:
    """Defaults and what it closes over; a function that holds itself ends the comparison there."""
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    held = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items(), *cells]
    return [None if value is function else value for value in held]
