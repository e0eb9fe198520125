"""Layer classes by the name that a network dict uses.

A layer class is a function `(call, **options) -> NamedTensor`; its keyword arguments are the options it knows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from returnn_hydra.network.errors import NetworkError, nearest
from returnn_hydra.network.layers import load_families

LayerFunction = Callable[..., Any]


@dataclass(frozen=True)
class LayerClass:
    """What is known about a layer class.

    Attributes:
        name: the `class` value.
        function: computes the layer.
        refs: options whose values name other layers (or lists or dicts of them).
        framewise: an extra axis (the frames of a loop) does not change what happens at one position,
            so that the layer may be computed for all frames at once.
        sequential: in a loop it carries a state from frame to frame, but over known frames it runs at once by itself.
        concat: the sources are concatenated along the feature axis, and `dropout` applies to the result.
        options: names of the keyword arguments.
    """

    name: str
    function: LayerFunction
    refs: tuple[str, ...]
    framewise: bool
    sequential: bool
    concat: bool
    options: frozenset[str]


_CLASSES: dict[str, LayerClass] = {}
NOT_HERE: dict[str, str] = {
    "twod_lstm": "there is no two-dimensional LSTM",
    "reshape": "use 'merge_dims' and 'split_dims'",
    "random_state_init": "use 'random', whose state is that of the run",
    "tikhonov_regularization": "use 'L2'",
}
"""Layer classes of RETURNN that public networks use now and then, and what to do without them."""

OWN = "; a class of your own (TensorFlow's can't run): a function with @register_layer({!r}) of returnn_hydra.network"


def register_layer(
    *names: str, refs: tuple[str, ...] = (), framewise: bool = False, sequential: bool = False, concat: bool = True
) -> Callable[[LayerFunction], LayerFunction]:
    """Decorator: make a function available as `{"class": name}`."""

    def decorate(function: LayerFunction) -> LayerFunction:
        parameters = list(inspect.signature(function).parameters.values())[1:]
        options = frozenset(p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD))
        for name in names:
            _CLASSES[name] = LayerClass(name, function, refs, framewise, sequential, concat, options)
        return function

    return decorate


def layer_class(name: object, where: str) -> LayerClass:
    """Look a class up.

    Raises:
        NetworkError: there is none of this name; the message has the nearest one.
    """
    if name not in _CLASSES:
        load_families()
    if name in NOT_HERE:
        raise NetworkError(f"{where}: layer class {name!r} is not supported: {NOT_HERE[name]}")
    if not isinstance(name, str) or name not in _CLASSES:
        hint = nearest(name, _CLASSES) + OWN.format(name)
        raise NetworkError(f"{where}: layer class {name!r} is not supported{hint}")
    return _CLASSES[name]


def layer_class_names() -> list[str]:
    load_families()
    return sorted(_CLASSES)
