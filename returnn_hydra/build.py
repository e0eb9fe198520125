"""From configuration nodes to objects: the only place that turns a `_target_` string into a call.

A target is allowed by a list, checked on the string and on what it resolves to, so that an alias
(`torch.nn.functional.torch.load`) is no way around it. The arguments are checked against the signature, names and
types, before anything is called. Why hydra.utils.instantiate is not used: ARCHITECTURE.md.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import pkgutil
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from returnn_hydra.config.errors import ConfigError, listed, nearest

_ROOMS = ("callbacks", "compat", "data", "frontend", "models", "network", "nn", "optim", "search", "steps", "tasks")
ALLOWED = (*(f"returnn_hydra.{room}." for room in _ROOMS), "torch.optim.", "torch.nn.modules.")
"""Prefixes of what a target may be. More come from the command line (`allow_targets`) or RETURNN_HYDRA_ALLOW only."""
_ALIASES = ("torch.nn.",)
"""Prefixes of further names by which an allowed target may be called."""

_RESERVED = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


class Builder:
    """Builds nodes.

    Args:
        allow: further prefixes of allowed targets; they end with a dot, or name one object.
    """

    def __init__(self, allow: Sequence[str] = ()) -> None:
        from_environment = [prefix for prefix in os.environ.get("RETURNN_HYDRA_ALLOW", "").split(":") if prefix]
        self.allowed = (*ALLOWED, *allow, *from_environment)
        if self.allowed != ALLOWED and os.getcwd() not in sys.path:  # the user's code may be in the current folder
            sys.path.append(os.getcwd())

    def build(self, node: Any, path: str, **runtime: Any) -> Any:
        """The object of a node; a node without `_target_` is built item by item.

        Args:
            node: plain containers; a callable in the place of a node is returned as it is.
            path: the node's place in the configuration, for messages.
            runtime: arguments from the program; those that the target does not take are left out.

        Raises:
            ConfigError: a target that is not allowed or not there, an unknown, missing or wrong argument.
        """
        if isinstance(node, dict):
            if "_target_" in node:
                return self._call(node, path, runtime)
            return {key: self.build(value, f"{path}.{key}") for key, value in node.items()}
        if isinstance(node, list):
            return [self.build(value, f"{path}[{index}]") for index, value in enumerate(node)]
        return node

    def make(self, node: Any, path: str, **runtime: Any) -> Any:
        """Like `build`; a callable in the place of a node is called, with those of the arguments that it takes."""
        if not isinstance(node, dict) and callable(node):
            return node(**taken_arguments(node, runtime))
        return self.build(node, path, **runtime)

    def check(self, node: Any, path: str, given: Sequence[str] = ()) -> None:
        """Look for every error of a node that shows without building it: targets, argument names, types.

        Args:
            given: arguments that the program will add.
        """
        if isinstance(node, dict):
            if "_target_" in node:
                target = self.resolve(node["_target_"], f"{path}._target_")
                arguments = {key: value for key, value in node.items() if key not in _RESERVED}
                check_arguments(target, arguments, path, given, partial=bool(node.get("_partial_")))
            for key, value in node.items():
                self.check(value, f"{path}.{key}")
        elif isinstance(node, list):
            for index, value in enumerate(node):
                self.check(value, f"{path}[{index}]")

    def resolve(self, name: Any, path: str) -> Callable[..., Any]:
        """The class or function with this dotted name, if it is on the list.

        Raises:
            ConfigError: not a dotted name, not on the list, not there, or no class or function.
        """
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")) or "." not in name:
            raise ConfigError(f"{path}={name!r}: expected the dotted name of a class or function")
        if not self._allows(name) and not name.startswith(_ALIASES):
            raise ConfigError(
                f"{path}={name}: not on the list of allowed targets (returnn_hydra's own, torch.optim, torch.nn)"
                f"{nearest(name.split('.')[0], ('returnn_hydra', 'torch'))}; "
                f"for your own code add allow_targets=[{name.split('.')[0]}.] to the command line"
            )
        target = _locate(name, path)
        if not isinstance(target, type | types.FunctionType | types.BuiltinFunctionType):
            raise ConfigError(f"{path}={name}: expected a class or a function, it is a {type(target).__name__}")
        own_name = f"{target.__module__}.{target.__qualname__}"
        if "__" in name or not self._allows(own_name):
            raise ConfigError(f"{path}={name}: is {own_name}, which is not on the list of allowed targets")
        return target

    def _allows(self, name: str) -> bool:
        return any(name.startswith(prefix) if prefix.endswith(".") else name == prefix for prefix in self.allowed)

    def _call(self, node: dict[str, Any], path: str, runtime: dict[str, Any]) -> Any:
        target = self.resolve(node["_target_"], f"{path}._target_")
        arguments = {key: self.build(value, f"{path}.{key}") for key, value in node.items() if key not in _RESERVED}
        added = taken_arguments(target, runtime)
        partial = bool(node.get("_partial_"))
        check_arguments(target, arguments, path, list(added), partial=partial)
        if partial:
            return functools.partial(target, **{**added, **arguments})
        try:
            return target(**{**added, **arguments})
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}: {error}") from error


def taken_arguments(target: Callable[..., Any], available: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that the target's signature asks for."""
    taken = parameters(target)
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values())
    return {key: value for key, value in available.items() if takes_all or key in taken}


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a function, or of a class's constructor, by name; `**options` of a class are its base's."""
    if not isinstance(target, type):
        return dict(inspect.signature(target).parameters)
    found: dict[str, inspect.Parameter] = dict(inspect.signature(target).parameters)
    for base in target.__mro__[1:]:
        rest = [name for name, parameter in found.items() if parameter.kind is parameter.VAR_KEYWORD]
        if not rest or "__init__" not in vars(base) or base is object:
            continue
        del found[rest[0]]
        inherited = list(inspect.signature(base).parameters.items())
        found.update({name: parameter for name, parameter in inherited if name not in found})
    return found


def check_arguments(
    target: Callable[..., Any],
    arguments: dict[str, Any],
    path: str,
    given: Sequence[str] = (),
    *,
    partial: bool = False,
) -> None:
    """Names and types of a node's arguments against the target's signature.

    Raises:
        ConfigError: an unknown or missing argument, or a scalar of the wrong type.
    """
    taken = parameters(target)
    by_name = {name: parameter for name, parameter in taken.items() if parameter.kind is not parameter.VAR_KEYWORD}
    takes_all = len(by_name) < len(taken)
    name = target.__qualname__
    for key in arguments:
        if key not in by_name and not takes_all:
            raise ConfigError(
                f"unknown key '{path}.{key}': {name} has no argument '{key}'{nearest(key, by_name)} "
                f"(there is: {listed(by_name)})"
            )
    missing = [
        key
        for key, parameter in by_name.items()
        if parameter.default is parameter.empty
        and parameter.kind is not parameter.VAR_POSITIONAL
        and key not in arguments
        and key not in given
    ]
    if missing and not partial:
        raise ConfigError(f"{path}: {name} needs {', '.join(repr(key) for key in missing)}")
    annotations = _annotations(target)
    for key, value in arguments.items():
        if key in annotations and not fits(value, annotations[key]):
            raise ConfigError(f"{path}.{key}={value!r}: expected {_words(annotations[key])}")


def fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value fits a type; True where only building it would tell."""
    if annotation is Any or annotation is inspect.Parameter.empty or isinstance(annotation, str | typing.TypeVar):
        return True
    if isinstance(value, dict) and "_target_" in value:
        return annotation not in (int, float, str, bool)
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in typing.get_args(annotation))
    if origin is typing.Literal:
        return value in typing.get_args(annotation)
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is bool:
        return isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is str:
        return isinstance(value, str)
    if isinstance(value, int | float | str | bool) or value is None:
        return not _is_container(origin or annotation) or (isinstance(value, str) and origin is None)
    if isinstance(value, list) and origin in (list, Sequence, tuple) and len(typing.get_args(annotation)) == 1:
        return all(fits(item, typing.get_args(annotation)[0]) for item in value)
    return True


def _is_container(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(
        annotation, dict | list | tuple | set | typing.Mapping | Sequence
    )


def _words(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(str(word) for word in typing.get_args(annotation))
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _annotations(target: Callable[..., Any]) -> dict[str, Any]:
    function: Any = vars(target).get("__init__", target) if isinstance(target, type) else target
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):
        return {}


def _locate(name: str, path: str) -> Any:
    """Import the longest prefix that is a module, then take the attributes."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:end])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and not module_name.startswith(error.name):
                raise ConfigError(f"{path}={name}: importing it needs the module '{error.name}'") from error
            continue
        for index, part in enumerate(parts[end:], start=end):
            if not hasattr(found, part):
                where = ".".join(parts[:index])
                inside = [module.name for module in pkgutil.iter_modules(getattr(found, "__path__", []))]
                raise ConfigError(f"{path}={name}: {where} has no '{part}'{nearest(part, [*dir(found), *inside])}")
            found = getattr(found, part)
        return found
    raise ConfigError(f"{path}={name}: no module named '{parts[0]}' in {os.getcwd()}, in PYTHONPATH, or installed")
