"""From what Hydra composed to the final configuration: a saved run below, Python overrides and command line on top."""

from __future__ import annotations

import importlib.util
import types
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from returnn_hydra.config.errors import ConfigError, listed, nearest
from returnn_hydra.config.schema import CHOICES, ENTRIES, MINIMUM, Config

COMPOSED_FILE = "composed.yaml"
CONFIG_FILE = "config.yaml"
OVERRIDES_FILE = "overrides.yaml"

NOT_INHERITED = ("run", "name", "task", "allow_targets", "overrides", "steal_lock", "allow_changed")
"""Keys of an old run that its `run=` does not bring back."""


@dataclass(frozen=True)
class Composed:
    """The configuration in its three forms."""

    unresolved: DictConfig
    """With interpolations; what `run=` starts from."""
    values: dict[str, Any]
    """Resolved, in plain containers; this is what is built from."""
    callables: dict[str, Any]
    """Functions and classes of the Python overrides, by key."""


def finish(composed: DictConfig, overrides: list[str]) -> Composed:
    """The final configuration of this command.

    Args:
        composed: as Hydra made it, with the schema's types.
        overrides: the command line's `key=value` words.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range, in whichever layer it stands.
    """
    keys = [override_key(word) for word in overrides]
    config = composed
    callables: dict[str, Any] = {}
    if composed.run is not None:
        config = _on_top(_load_run(Path(composed.run)), composed, [*keys, *NOT_INHERITED])
    if config.overrides is not None:
        from_file, callables = _load_python(Path(config.overrides))
        config = _on_top(_merge(config, from_file, config.overrides), composed, keys)
        callables = {name: value for name, value in callables.items() if name not in keys}
    try:
        values = OmegaConf.to_container(_with_typed_entries(config), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(describe_omegaconf(error)) from error
    assert isinstance(values, dict)
    by_key = {str(key): value for key, value in values.items()}
    check_values(by_key)
    return Composed(config, by_key, callables)


def _with_typed_entries(config: DictConfig) -> DictConfig:
    """Every entry of extern_data, model_outputs and datasets.extra with its type's defaults.

    Raises:
        ConfigError: an unknown key of the configuration or of an entry, or a wrong type.
    """
    known = [field.name for field in fields(Config)]
    for key in map(str, config):
        if key not in known:
            raise ConfigError(f"unknown key '{key}'{nearest(key, known)}")
    result = config.copy()
    OmegaConf.set_struct(result, False)
    for path, kind in ENTRIES.items():
        node = OmegaConf.select(config, path)
        for name, entry in node.items_ex(resolve=False) if isinstance(node, DictConfig) else ():
            where = f"{path}.{name!s}"
            if not isinstance(entry, DictConfig):
                raise ConfigError(
                    f"{where}={entry!r}: expected keys such as {listed(field.name for field in fields(kind))}"
                )
            names = [field.name for field in fields(kind)]
            for key in map(str, entry):
                if key not in names:
                    raise ConfigError(f"unknown key '{where}.{key}'{nearest(key, names)}")
            try:
                typed = OmegaConf.merge(OmegaConf.structured(kind), entry)
            except OmegaConfBaseException as error:
                raise ConfigError(f"{where}.{describe_omegaconf(error)}") from error
            OmegaConf.update(result, where, typed, merge=False, force_add=True)
    return result


def override_key(word: str) -> str:
    """`+model.dim@x=3` -> `model.dim`."""
    return word.split("=", 1)[0].lstrip("+~").split("@", 1)[0].replace("/", ".")


def check_values(values: dict[str, Any]) -> None:
    """Words and ranges that the schema's types can't express.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    for key, words in CHOICES.items():
        if values[key] not in words:
            hint = nearest(str(values[key]), words)
            raise ConfigError(f"{key}={values[key]!r}: expected one of {', '.join(words)}{hint}")
    for key, least in MINIMUM.items():
        if values[key] is not None and not values[key] >= least:
            raise ConfigError(f"{key}={values[key]}: expected at least {least:g}")
    load_epoch = values["load_epoch"]
    if load_epoch not in ("last", "best") and not (isinstance(load_epoch, int) and load_epoch >= 1):
        raise ConfigError(f"load_epoch={load_epoch!r}: expected a number from 1, last, or best")
    for key in ("batch_size", *(f"datasets.{name}.batch_size" for name in values["datasets"])):
        _check_batch_size(key, values)


def _check_batch_size(key: str, values: dict[str, Any]) -> None:
    value: Any = values
    for part in key.split("."):
        value = (value or {}).get(part)
    sizes = value if isinstance(value, dict) else {"": value}
    for stream, size in sizes.items():
        if size is not None and not (isinstance(size, int) and not isinstance(size, bool) and size >= 1):
            where = f"{key}.{stream}" if stream else key
            raise ConfigError(f"{where}={size!r}: expected a number of frames (int, at least 1) or null")


def _load_run(folder: Path) -> DictConfig:
    file = folder / COMPOSED_FILE
    if not file.is_file():
        hint = nearest(folder.name, [path.name for path in folder.parent.glob("*")] if folder.parent.is_dir() else [])
        raise ConfigError(f"run={folder}: no {COMPOSED_FILE} there, so this is no run's folder{hint}")
    saved = OmegaConf.load(file)
    assert isinstance(saved, DictConfig)
    return _merge(OmegaConf.structured(Config), saved, str(file))


def _merge(base: DictConfig, values: Any, where: str) -> DictConfig:
    """`values` over `base`, checked by the schema; nodes with a `_target_` of their own replace the old node."""
    known = [field.name for field in fields(Config)]
    result = base.copy()
    OmegaConf.set_struct(result, False)
    for key, value in values.items() if isinstance(values, dict) else values.items_ex(resolve=False):
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{key}'{nearest(key, known)}")
        try:
            if isinstance(value, (dict, DictConfig)) and "_target_" in value:
                OmegaConf.update(result, key, value, merge=False)
            else:
                OmegaConf.update(result, key, value, merge=True)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{where}: {describe_omegaconf(error)}") from error
    return result


def _on_top(base: DictConfig, composed: DictConfig, keys: list[str]) -> DictConfig:
    """`base` with the values that `composed` has at these keys."""
    result = base.copy()
    OmegaConf.set_struct(result, False)
    for key in keys:
        node: Any = composed
        *parents, last = key.split(".")
        for part in parents:
            node = node._get_node(part) if isinstance(node, DictConfig) and part in node else None
        if isinstance(node, DictConfig) and last in node:
            OmegaConf.update(result, key, dict(node.items_ex(resolve=False))[last], merge=False, force_add=True)
    return result


def _load_python(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The module-level names of a Python file: (values, callables).

    The file is the user's own code and is run. Its helpers are its own business: only callables named like a key count.
    """
    if not file.is_file():
        raise ConfigError(f"overrides={file}: no such file")
    spec = importlib.util.spec_from_file_location("returnn_hydra_overrides", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    known = [field.name for field in fields(Config)]
    values, callables = {}, {}
    for name, value in vars(module).items():
        if name.startswith("_") or isinstance(value, types.ModuleType):
            continue
        if callable(value):
            if name in known:
                callables[name] = value
        elif name in known:
            values[name] = value
        elif getattr(value, "__module__", None) != "__future__":
            raise ConfigError(f"{file}: unknown key '{name}'{nearest(name, known)} (a helper's name starts with '_')")
    return values, callables


def describe_omegaconf(error: OmegaConfBaseException) -> str:
    """One line for an error of OmegaConf: path, value, what was expected, nearest right name."""
    full_key = getattr(error, "full_key", None) or ""
    first = str(getattr(error, "msg", None) or error).splitlines()[0]
    parent = getattr(error, "parent_node", None)
    key = getattr(error, "key", None)
    if "not in" in first and parent is not None and key is not None:
        names = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
        where = full_key.rsplit(".", 1)[0] if "." in full_key else "the configuration"
        return f"unknown key '{full_key}': {where} has no '{key}'{nearest(str(key), names)}"
    if "Missing mandatory value" in first:
        return f"{full_key}: a value is required"
    return f"{full_key}: {first}" if full_key and full_key not in first else first
