"""Networks that change between epochs: `get_network(epoch)`, and `pretrain` with a construction algorithm."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from returnn_hydra.network.errors import NetworkError

Construct = Callable[..., Mapping[str, Any] | None]


class NetworkSchedule:
    """Which network dict, and which config values, hold in an epoch.

    Args:
        network: the (final) network dict.
        get_network: makes the dict of an epoch instead: `get_network(epoch=...)`.
        pretrain: {"construction_algo": f(idx, net_dict), "repetitions": n}: f gives the network of step idx, and None
            when the construction is over.

    Raises:
        NetworkError: neither or both of `network` and `get_network`, or unknown options.
    """

    def __init__(
        self,
        network: Mapping[str, Any] | None = None,
        get_network: Construct | None = None,
        pretrain: Mapping[str, Any] | None = None,
    ) -> None:
        if (network is None) == (get_network is None):
            raise NetworkError("give either 'network' or 'get_network'")
        if pretrain is not None and not isinstance(pretrain, Mapping):
            raise NetworkError(f"pretrain = {pretrain!r} is not supported; nearest: {{'construction_algo': function}}")
        self._network = network
        self._get_network = get_network
        self._steps = self._construct(dict(pretrain)) if pretrain is not None else []

    def _construct(self, options: dict[str, Any]) -> list[Mapping[str, Any]]:
        """The network of every pretraining epoch."""
        algorithm = options.pop("construction_algo", None)
        repetitions = options.pop("repetitions", 1)
        options.pop("copy_param_mode", None)  # parameters are always carried over by name and shape
        if not callable(algorithm) or self._network is None:
            raise NetworkError("pretrain needs 'construction_algo', a function, and a 'network'")
        if options:
            raise NetworkError(f"pretrain: {sorted(options)} is not supported; known: construction_algo, repetitions")
        epochs: list[Mapping[str, Any]] = []
        for index in range(1000):
            built = algorithm(idx=index, net_dict=copy.deepcopy(dict(self._network)))
            if built is None:
                return epochs
            times = built.get("#repetition", _repetitions(repetitions, index))
            epochs += [built] * int(times)
        raise NetworkError("pretrain: construction_algo never returned None")

    @property
    def num_pretrain_epochs(self) -> int:
        return len(self._steps)

    def network(self, epoch: int) -> dict[str, Any]:
        """The dict of an epoch (from 1), `#...` keys included."""
        if self._get_network is not None:
            return dict(_called(self._get_network, epoch))
        if epoch <= len(self._steps):
            return dict(self._steps[epoch - 1])
        assert self._network is not None
        return dict(self._network)

    def config_overrides(self, epoch: int) -> dict[str, Any]:
        """`#config`: values that replace those of the config in this epoch."""
        return dict(self.network(epoch).get("#config") or {})

    def changes_at(self, epoch: int) -> bool:
        """Is the network another one than in the epoch before?"""
        return epoch > 1 and _layers(self.network(epoch)) != _layers(self.network(epoch - 1))


def _repetitions(value: Any, index: int) -> int:
    if isinstance(value, int):
        return value
    if isinstance(value, Mapping):
        return int(value.get(index, value.get("default", 1)))
    if isinstance(value, Sequence):
        return int(value[index] if index < len(value) else value[-1])
    raise NetworkError(f"pretrain: repetitions = {value!r} is neither a number, a list nor a dict")


def _called(function: Construct, epoch: int) -> Mapping[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    network = function(epoch=epoch, **({"_fwd_compat": None} if takes_any else {}))
    if not isinstance(network, Mapping):
        raise NetworkError(f"get_network(epoch={epoch}) gave a {type(network).__name__}, expected a dict")
    return network


def _layers(network: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options for name, options in network.items() if not name.startswith("#")}
