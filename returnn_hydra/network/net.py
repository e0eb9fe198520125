"""A network dict, prepared once: layer specs with their class, sources and the other layers that they need."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from returnn_hydra.network.errors import NetworkError
from returnn_hydra.network.options import check_options, layer_options
from returnn_hydra.network.registry import LayerClass, layer_class

SOURCE_FREE = frozenset(("constant", "variable", "range", "train_flag", "global_train_step", "random", "eval_flag"))


_EXTRA = re.compile(r"(extra(?:\.[A-Za-z0-9_.()]+)?):(.+)", re.DOTALL)


def split_extra(ref: Any) -> tuple[str, str] | None:
    """Prefix and name of `extra.search:output`; None for any other name of a layer."""
    match = _EXTRA.fullmatch(ref) if isinstance(ref, str) and ref.startswith("extra") else None
    return (match[1], match[2]) if match else None


class LayerSpec:
    """One entry of a network dict.

    Attributes:
        name: its key.
        path: with the names of the networks around it (`output/output_prob`).
        arguments: the options that the class's function takes.
        sources: what `from` names.
        sub: the network inside (subnetwork, rec units as dicts, masked computation).
        memo: what the layer learnt when the network was built.
    """

    def __init__(self, name: str, options: Mapping[str, Any], net: Net) -> None:
        self.name = name
        self.net = net
        self.path = f"{net.path}{name}"
        if not isinstance(options, Mapping) or "class" not in options:
            raise NetworkError(f"{self.path}: a layer is a dict with 'class', not {options!r}")
        self.options: dict[str, Any] = dict(options)
        self.known: LayerClass = layer_class(options["class"], self.path)
        check_options(self.options, self.known, self.path)
        self.arguments = layer_options(self.options, self.known)
        self.sources = _source_names(self.options.get("from", self._default_source()), self.path)
        self.memo: dict[str, Any] = {}
        self._sub: Net | None = None

    def _default_source(self) -> Any:
        return () if {"weights", "condition"} & self.options.keys() or self.known.name in SOURCE_FREE else "data"

    def sub(self, layers: Mapping[str, Any]) -> Net:
        """The network inside; prepared once."""
        if self._sub is None:
            self._sub = Net(layers, parent=self.net, path=f"{self.path}/")
        return self._sub

    def references(self) -> list[str]:
        """Names of all layers that this one may read, as they are written (with `prev:`, `base:`, `data:`)."""
        found = list(self.sources)
        for option in (*self.known.refs, "initial_output", "initial_state", "chunking_layer"):
            found += _strings(self.options.get(option))
        target = self.options.get("target")
        found += [t.removeprefix("layer:") if t.startswith("layer:") else f"data:{t}" for t in _strings(target)]
        reuse = self.options.get("reuse_params")
        inner = self.options.get("subnetwork") or self.options.get("unit") or {}
        if isinstance(inner, Mapping):
            found += _inner_references(inner if "class" not in inner else {"unit": inner})
        del reuse  # parameters are no dependency of values
        return found


class Net:
    """The layers of one network dict; `#...` keys are no layers.

    Args:
        layers: the dict.
        parent: the network around it.
        path: prefix of the layers' paths.
    """

    def __init__(self, layers: Mapping[str, Any], parent: Net | None = None, path: str = "") -> None:
        self.layers = {name: options for name, options in layers.items() if not name.startswith("#")}
        self.parent = parent
        self.path = path
        self._specs: dict[str, LayerSpec] = {}
        self.memo: dict[Any, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.layers

    def spec(self, name: str) -> LayerSpec:
        if name not in self._specs:
            self._specs[name] = LayerSpec(name, self.layers[name], self)
        return self._specs[name]

    def roots(self, search: bool, with_losses: bool) -> list[str]:
        """Layers that are computed for their own sake, sorted by name."""
        found = []
        for name, options in self.layers.items():
            if not isinstance(options, Mapping):
                raise NetworkError(f"{self.path}{name}: a layer is a dict with 'class', not {options!r}")
            if options.get("only_on_search") and not search:
                continue
            if options.get("only_on_eval") and not with_losses:
                continue
            is_root = name == "output" or name.endswith(":output") or bool(options.get("is_output_layer"))
            is_root = is_root or bool(options.get("register_as_extern_data"))
            if is_root or (with_losses and options.get("loss")):
                found.append(name)
        return sorted(found)


def _source_names(value: Any, where: str) -> list[Any]:
    if value is None or value == "none":
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, (list, tuple)):
        return list(value)
    raise NetworkError(f"{where}: 'from' = {value!r} is neither a name nor a list of names")


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for part in value.values() for text in _strings(part)]
    if isinstance(value, (list, tuple)):
        return [text for part in value for text in _strings(part)]
    return []


def _inner_references(layers: Mapping[str, Any]) -> Iterator[str]:
    """References from an inner network dict to the network around it (`base:x` becomes `x`)."""
    for options in layers.values():
        for text in _strings(options):
            if text.startswith("base:"):
                yield text.removeprefix("base:")
            elif text.startswith("data:"):
                yield text
            elif text.startswith("prev:"):
                yield "prev:?"
