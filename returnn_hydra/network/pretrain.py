"""The networks of a pretraining, from small to whole: RETURNN's `pretrain` option."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from returnn_hydra.network.call import COPY_MODES
from returnn_hydra.network.errors import NetworkError, nearest

Layers = dict[str, Any]
OPTIONS = (
    "construction_algo",
    "repetitions",
    "copy_param_mode",
    "copy_output_layer",
    "greedy",
    "output_layers",
    "input_layers",
)
MOST_STEPS = 1000


class WrapEpochValue:
    """A value in a network dict that depends on the pretraining epoch: `func(epoch=...)`."""

    def __init__(self, func: Callable[..., Any]) -> None:
        self.func = func


class Pretrain:
    """One network dict for every pretraining epoch; the last one is the whole network.

    Args:
        network: the whole network.
        options: of the config's `pretrain` dict; `True` and "default" mean none.

    Raises:
        NetworkError: an unknown option or value, or the construction never ends.
    """

    def __init__(self, network: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        for option in options:
            if option not in OPTIONS:
                raise NetworkError(f"pretrain: no option {option!r}{nearest(option, OPTIONS)}")
        if options.get("greedy"):
            raise NetworkError("pretrain: 'greedy' is not supported (nor by RETURNN any more); freeze with 'trainable'")
        self.copy_param_mode = options.get("copy_param_mode")
        if self.copy_param_mode not in COPY_MODES:
            raise NetworkError(f"pretrain: copy_param_mode = {self.copy_param_mode!r}, expected one of {COPY_MODES}")
        copy_output = options.get("copy_output_layer")
        copy_output = self.copy_param_mode if copy_output is None else copy_output
        self.copies_output_layers = copy_output not in (False, "reset")
        steps = self._construct(dict(network), options)
        times = _repetitions(options.get("repetitions"), len(steps))
        self.epochs: list[Layers] = []
        """The network of every pretraining epoch."""
        for step, count in zip(steps, times, strict=True):
            for _ in range(int(step.get("#repetition", count))):
                layers = {name: value for name, value in step.items() if name != "#repetition"}
                self.epochs.append(_resolved(layers, len(self.epochs) + 1))

    @staticmethod
    def _construct(network: Layers, options: Mapping[str, Any]) -> list[Layers]:
        algorithm = options.get("construction_algo") or "from_output"
        outputs = _names(options.get("output_layers") or ["output"])
        inputs = _names(options.get("input_layers") or ["data"])
        if callable(algorithm):
            return custom_steps(network, algorithm)
        if algorithm == "from_output":
            return without_idle_steps(steps_from_output(network, outputs, inputs), outputs)
        if algorithm == "from_input":
            return without_idle_steps(steps_from_input(network, outputs), outputs)
        if algorithm == "no_network_modifications":
            return [network]
        known = ("from_output", "from_input", "no_network_modifications")
        raise NetworkError(f"pretrain: construction_algo = {algorithm!r}{nearest(algorithm, known)} (or a function)")


def custom_steps(network: Layers, algorithm: Callable[..., Any]) -> list[Layers]:
    """`algorithm(idx=0, 1, ..., net_dict=...)` until it gives None; then the whole network."""
    steps: list[Layers] = []
    for index in range(MOST_STEPS):
        built = algorithm(idx=index, net_dict=copy.deepcopy(network))
        if not built:
            return [*steps, network]
        if not isinstance(built, Mapping):
            raise NetworkError(f"pretrain: construction_algo gave a {type(built).__name__}, expected a dict or None")
        steps.append(dict(built))
    raise NetworkError(f"pretrain: construction_algo gave a network {MOST_STEPS} times, and never None")


def steps_from_output(network: Layers, outputs: Sequence[str], inputs: Collection[str]) -> list[Layers]:
    """Take away what is directly below the outputs, again and again; the outputs then read what is below that.

    A step where an output would read an input stream, or that loses only fixed layers, is no step.
    """
    for name in outputs:
        if name not in network:
            raise NetworkError(f"pretrain: there is no output layer {name!r}{nearest(name, network)}")
    steps = [network]
    current = copy.deepcopy(network)
    while True:
        before = sorted({source for name in outputs for source in sources_of(current, name)})
        removed = [source for source in before if source not in inputs]
        for source in removed:
            if source not in current:
                raise NetworkError(f"pretrain: layer {source!r} is missing; write a construction_algo for this network")
        kept = {source for source in before if source in inputs}
        below = sorted(kept.union(*(sources_of(current, source) for source in removed)))
        if below == before:
            return steps
        current = {name: options for name, options in current.items() if name not in removed}
        for name in outputs:
            current[name] = {**current[name], "from": below}
        if not set(below) & set(inputs) and any(network[name].get("trainable", True) for name in removed):
            steps.insert(0, copy.deepcopy(current))


def steps_from_input(network: Layers, outputs: Sequence[str]) -> list[Layers]:
    """All layers up to a depth of 1, 2, ... from the input, and the outputs."""
    steps: list[Layers] = []
    while (step := _up_to_depth(network, outputs, len(steps) + 1)) is not None:
        steps.append(step)
    return [*steps, network]


def _up_to_depth(network: Layers, outputs: Sequence[str], depth: int) -> Layers | None:
    """None: the whole network is reached."""
    layers = _layers(network)
    chosen: Layers = {}
    front = ["data"]
    while fixed := [name for name in _readers(layers, front, chosen) if not layers[name].get("trainable", True)]:
        chosen |= {name: layers[name] for name in fixed}
        front += fixed
    for _ in range(depth):
        front = _readers(layers, front, chosen)
        if not front:
            return None
        chosen |= {name: layers[name] for name in front}
    chosen |= {name: layers[name] for name in layers if is_output(layers, name, outputs)}
    missing = {source for name in chosen for source in sources_of(layers, name)} - {*chosen, "data"}
    if not missing:
        return None
    result = {name: value for name, value in network.items() if name.startswith("#")}
    for name, options in chosen.items():
        wanted = sources_of(layers, name)
        found = _nearest_sources(layers, chosen, name)
        if found != wanted:
            found = [source for source in found if source != "data"]
        result[name] = {**copy.deepcopy(options), "from": found}
    return result


def _readers(layers: Layers, sources: Collection[str], known: Collection[str]) -> list[str]:
    """Layers that read one of the sources, without the known ones."""
    return [name for name in sorted(layers) if name not in known and set(sources_of(layers, name)) & set(sources)]


def _nearest_sources(layers: Layers, chosen: Collection[str], name: str) -> list[str]:
    """What the layer reads, where layers that are not there are replaced by what they read."""
    found: list[str] = []
    seen: set[str] = {name}

    def collect(layer: str) -> None:
        for source in sources_of(layers, layer):
            if source in chosen or source == "data":
                found.extend([source] if source not in found else [])
            elif source not in seen and source in layers:
                seen.add(source)
                collect(source)

    collect(name)
    return found


def without_idle_steps(steps: list[Layers], outputs: Sequence[str]) -> list[Layers]:
    """Steps that add no trainable layer besides outputs are left out; the last step stays."""
    kept = []
    before: Layers = {}
    for step in steps[:-1]:
        layers = _layers(step)
        new = [name for name in layers if name not in before and not is_output(layers, name, outputs)]
        if any(layers[name].get("trainable", True) for name in new):
            kept.append(step)
        before = layers
    return [*kept, steps[-1]]


def is_output(layers: Layers, name: str, outputs: Sequence[str]) -> bool:
    return name in outputs or layers[name].get("class") == "softmax" or "target" in layers[name]


def sources_of(layers: Mapping[str, Any], name: str) -> list[str]:
    return _names(layers[name].get("from", ["data"]))


def _layers(network: Mapping[str, Any]) -> Layers:
    return {name: options for name, options in network.items() if not name.startswith("#")}


def _names(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _repetitions(value: Any, num_steps: int) -> list[int]:
    """Epochs of every step: a number, a list whose last entry goes on, or {step: number, "default": .., "final": ..}.

    Raises:
        NetworkError: neither of them, or more entries than steps.
    """
    if value is None or (isinstance(value, int) and not value):
        return [1] * num_steps
    if isinstance(value, int):
        return [value] * num_steps
    if isinstance(value, Mapping):
        times = [value.get("default", 1)] * num_steps
        for key, count in value.items():
            index = num_steps - 1 if key == "final" else key
            if key == "default":
                continue
            if not isinstance(index, int) or not 0 <= index < num_steps:
                raise NetworkError(f"pretrain: repetitions[{key!r}]: there are the steps 0 to {num_steps - 1}")
            times[index] = count
        return times
    if isinstance(value, Sequence) and not isinstance(value, str) and 0 < len(value) <= num_steps:
        return [*value, *[value[-1]] * (num_steps - len(value))]
    raise NetworkError(
        f"pretrain: repetitions = {value!r}: expected a number, a dict, or a list of at most {num_steps} numbers"
    )


def _resolved(value: Any, epoch: int) -> Any:
    """A copy with every `WrapEpochValue` replaced."""
    if isinstance(value, WrapEpochValue):
        return value.func(epoch=epoch)
    if isinstance(value, Mapping):
        return {key: _resolved(part, epoch) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [_resolved(part, epoch) for part in value]
        return type(value)(parts) if type(value) in (list, tuple) else value
    return value
