"""Objects described by dicts: {"class": "rf.Linear", "with_bias": False}."""

from __future__ import annotations

import difflib
import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

_PACKAGE = "returnn_hydra.frontend"


def build_dict(cls: Callable[..., Any], **kwargs: Any) -> dict[str, Any]:
    """The dict that build_from_dict makes the object of."""
    name = getattr(cls, "__qualname__", None)
    if not name or "<" in name:
        raise ValueError(f"build_dict: {cls} is local to a function; it cannot be found again by its name")
    module = getattr(cls, "__module__", "")
    frontend = sys.modules[_PACKAGE]
    if "class" in kwargs:
        raise ValueError("build_dict: 'class' is the dict's own key")
    if module.startswith(_PACKAGE):
        if getattr(frontend, name, None) is cls:
            return {"class": f"rf.{name}", **kwargs}
        module = module.replace(_PACKAGE, "returnn.frontend", 1)
        return {"class": f"{module}.{name}".replace("returnn.frontend.", "rf.", 1), **kwargs}
    return {"class": f"{module}.{name}", **kwargs}


def build_from_dict(d: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Make the object; its class may be a function, which then is given back with the options bound.

    Raises:
        ValueError: no such class.
    """
    options = dict(d)
    name = options.pop("class", None)
    if name is None:
        raise ValueError(f"build_from_dict: {d} has no 'class'")
    cls = name if callable(name) else _find(name)
    if not isinstance(cls, type):
        return functools.partial(cls, *args, **options, **kwargs) if (args or options or kwargs) else cls
    return cls(*args, **{**options, **kwargs})


def _find(name: str) -> Any:
    path = name
    if path.split(".")[0] in ("rf", "returnn"):
        path = path.replace("rf.", f"{_PACKAGE}.", 1) if path.startswith("rf.") else path
        path = path.replace("returnn.frontend.", f"{_PACKAGE}.", 1)
    parts = path.split(".")
    for split in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:split])
        try:
            value: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not module_name.startswith(error.name):
                raise
            continue
        return _walk(value, parts[split:], name)
    raise ValueError(f"class '{name}': there is no module '{parts[0]}'")


def _walk(value: Any, parts: list[str], name: str) -> Any:
    for part in parts:
        if not hasattr(value, part):
            near = difflib.get_close_matches(part, dir(value), n=3)
            raise ValueError(f"class '{name}': {value!r} has no '{part}'{f', but {near}' if near else ''}")
        value = getattr(value, part)
    return value
