"""From what Hydra composed to the final configuration: a saved run below, Python overrides and command line on top."""

from __future__ import annotations

import functools
import importlib.util
import types
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from returnn_hydra.config.errors import ConfigError, listed, nearest
from returnn_hydra.config.schema import CHOICES, ENTRIES, MINIMUM, Config

COMPOSED_FILE = "composed.yaml"
CONFIG_FILE = "config.yaml"
OVERRIDES_FILE = "overrides.yaml"
CALLABLE = "\0function "
"""Begins the word that stands for a function while interpolations are resolved; no YAML file can hold it."""

NOT_INHERITED = (
    *("run", "name", "task", "outputs", "allow_targets", "overrides", "steal_lock", "allow_changed"),
    *("returnn_config", "returnn"),
)
"""Keys of an old run that its `run=` does not bring back."""
OUTPUTS = ("forward_callback", "search_output", "callbacks")
"""Nodes whose `file` is written."""


@dataclass(frozen=True)
class Composed:
    """The configuration in its three forms."""

    unresolved: DictConfig
    """With interpolations; what `run=` starts from."""
    values: dict[str, Any]
    """Resolved, in plain containers, with the functions and classes of the Python overrides; what is built from."""
    callables: frozenset[str] = frozenset()
    """Dotted keys of the Python overrides whose values are functions or classes."""

    def plain_values(self) -> dict[str, Any]:
        """The values without functions and classes: what YAML can hold."""
        return _without_callables(self.values)


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
        for key in OUTPUTS:
            _refuse_saved_files(config.get(key), key, composed.run, keys)
    if config.overrides is not None:
        from_file, callables = _load_python(Path(config.overrides))
        config = _on_top(_merge(config, from_file, config.overrides), composed, keys)
        callables = {path: value for path, value in callables.items() if not _is_below(path, keys)}
    nodes = {path for path in callables if isinstance(OmegaConf.select(config, path), DictConfig)}
    marked = _marked(config, set(callables) - nodes)
    try:
        values = OmegaConf.to_container(_with_typed_entries(marked), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(describe_omegaconf(error)) from error
    assert isinstance(values, dict)
    by_key = {str(key): _unmarked(value, callables) for key, value in values.items()}
    for path in nodes:
        *parents, last = path.split(".")
        functools.reduce(lambda node, key: node[key], parents, by_key)[last] = callables[path]
    check_values(by_key)
    return Composed(config, by_key, frozenset(callables))


def _is_below(path: str, keys: list[str]) -> bool:
    return any(path == key or path.startswith(f"{key}.") for key in keys)


def _marked(config: DictConfig, paths: set[str]) -> DictConfig:
    """A copy with a word in place of each function, so that interpolations find it.

    Raises:
        ConfigError: a key whose type has no room for a function.
    """
    result = config.copy()
    OmegaConf.set_struct(result, False)
    for path in sorted(paths):
        try:
            OmegaConf.update(result, path, CALLABLE + path, merge=False, force_add=True)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{config.overrides}: {path} can't be a function; expected a plain value") from error
    return result


def _unmarked(value: Any, callables: dict[str, Any]) -> Any:
    """The words of `_marked` replaced by what they stand for."""
    if isinstance(value, dict):
        return {key: _unmarked(item, callables) for key, item in value.items()}
    if isinstance(value, list):
        return [_unmarked(item, callables) for item in value]
    if isinstance(value, str) and value.startswith(CALLABLE):
        return callables.get(value[len(CALLABLE) :], value)
    return value


def _without_callables(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_callables(item) for key, item in value.items() if not callable(item)}
    return value


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
    if values["dynamic_learning_rate"] is not None and not callable(values["dynamic_learning_rate"]):
        raise ConfigError(
            f"dynamic_learning_rate={values['dynamic_learning_rate']!r}: expected a function: write it into a Python "
            "file, and give overrides=FILE"
        )
    load_epoch = values["load_epoch"]
    if load_epoch not in ("last", "best") and not (isinstance(load_epoch, int) and load_epoch >= 1):
        raise ConfigError(f"load_epoch={load_epoch!r}: expected a number from 1, last, or best")
    _check_count("grad_accum_steps", values["grad_accum_steps"], "batches")
    for where, node in {"": values, **{f"datasets.{name}.": conf for name, conf in values["datasets"].items()}}.items():
        size = (node or {}).get("batch_size")
        for stream, number in size.items() if isinstance(size, dict) else [("", size)]:
            _check_count(f"{where}batch_size{f'.{stream}' if stream else ''}", number, "frames", or_null=True)
        _check_count(f"{where}max_seqs", (node or {}).get("max_seqs"), "sequences", or_null=True)


def _check_count(key: str, value: Any, unit: str, or_null: bool = False) -> None:
    """A number from 1, or a function of the Python overrides that gives one."""
    if callable(value) or (value is None and or_null):
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        hint = " or null" if or_null else ""
        raise ConfigError(f"{key}={value!r}: expected a number of {unit} (int, at least 1){hint}, or a function")


def _load_run(folder: Path) -> DictConfig:
    file = folder / COMPOSED_FILE
    if not file.is_file():
        hint = nearest(folder.name, [path.name for path in folder.parent.glob("*")] if folder.parent.is_dir() else [])
        raise ConfigError(f"run={folder}: no {COMPOSED_FILE} there, so this is no run's folder{hint}")
    saved = load_saved(file)
    if not isinstance(saved, DictConfig):
        raise ConfigError(f"{file}: expected the keys of a configuration")
    return _merge(OmegaConf.structured(Config), saved, str(file))


def load_saved(file: Path) -> Any:
    """A YAML file of a run's folder, as data.

    Raises:
        ConfigError: it is damaged, or asks for objects of Python.
    """
    try:
        return OmegaConf.load(file)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError, RecursionError) as error:
        raise ConfigError(f"{file}: can't be read: {' '.join(str(error).split())}") from error


def _refuse_saved_files(node: Any, path: str, run: str, keys: list[str]) -> None:
    """A saved configuration may not say where files are written, but for the run's own folder.

    Raises:
        ConfigError: a `file` that this command line does not give.
    """
    if not isinstance(node, DictConfig):
        return
    for key, value in node.items_ex(resolve=False):
        where = f"{path}.{key!s}"
        if key == "file" and value is not None and not _is_below(where, keys):
            raise ConfigError(
                f"run={run}: its configuration writes to {where}={value!r}; a saved configuration can't choose that: "
                f"say {where}=FILE, or {where}=null for the run's folder"
            )
        _refuse_saved_files(value, where, run, keys)


def _merge(base: DictConfig, values: Any, where: str) -> DictConfig:
    """`values` over `base`, checked by the schema; nodes with a `_target_` of their own replace the old node."""
    known = [field.name for field in fields(Config)]
    result = base.copy()
    OmegaConf.set_struct(result, False)
    for key, value in values.items() if isinstance(values, dict) else values.items_ex(resolve=False):
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{key}'{nearest(key, known)}")
        if value is None and is_dataclass(OmegaConf.get_type(base, key)):  # so in runs of before `debug` had keys
            continue
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
        for part in key.split("."):
            node = _entry(node, part)
        if node is not None:
            OmegaConf.update(result, key, node, merge=False, force_add=True)
    return result


def _entry(node: Any, part: str) -> Any:
    """The node below another one, by its key or its number in a list; None if there is none."""
    if isinstance(node, DictConfig) and not node._is_none() and part in node:
        return node._get_node(part)
    if isinstance(node, ListConfig) and part.isdecimal() and int(part) < len(node):
        return node._get_node(int(part))
    return None


def _load_python(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The module-level names of a Python file: (values, functions and classes by dotted key).

    The file is the user's own code and is run. Its helpers are its own business: only callables named like a key count,
    and those inside of a value: `learning_rate_control = {"decay": lambda rate: rate / 2}`.
    """
    if not file.is_file():
        raise ConfigError(f"overrides={file}: no such file")
    if file.suffix != ".py":
        raise ConfigError(f"overrides={file}: expected a Python file, whose name ends with .py")
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
            values[name] = _plain_part(value, name, callables)
        elif getattr(value, "__module__", None) != "__future__":
            raise ConfigError(f"{file}: unknown key '{name}'{nearest(name, known)} (a helper's name starts with '_')")
    return values, callables


def _plain_part(value: Any, path: str, callables: dict[str, Any]) -> Any:
    """The value without functions and classes, which are put into `callables`."""
    if not isinstance(value, dict):
        return value
    callables.update({f"{path}.{key}": item for key, item in value.items() if callable(item)})
    return {key: _plain_part(item, f"{path}.{key}", callables) for key, item in value.items() if not callable(item)}


def _deeper(config: DictConfig, key: str) -> str:
    """Where a key that is not at the top is to be found, as in `seq_ordering`."""
    found = [path for path in _paths(config) if path.rpartition(".")[2] == key]
    return f"; did you mean '{found[0]}'?" if found else ""


def _paths(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key, value in config.items_ex(resolve=False):
        yield f"{prefix}{key!s}"
        if isinstance(value, DictConfig) and not value._is_none() and not value._is_missing():
            yield from _paths(value, f"{prefix}{key!s}.")


def describe_omegaconf(error: OmegaConfBaseException) -> str:
    """One line for an error of OmegaConf: path, value, what was expected, nearest right name."""
    full_key = getattr(error, "full_key", None) or ""
    first = str(getattr(error, "msg", None) or error).splitlines()[0]
    parent = getattr(error, "parent_node", None)
    key = getattr(error, "key", None)
    if "not in" in first and parent is not None and key is not None:
        names = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
        likely = [name for name in names if str(key)[:1] == "_" or name[:1] != "_"]
        where = full_key.rsplit(".", 1)[0] if "." in full_key else "the configuration"
        is_top = isinstance(parent, DictConfig) and parent._get_parent() is None
        hint = (_deeper(parent, str(key)) if is_top else "") or nearest(str(key), likely)
        if not hint and "_target_" in names:
            hint = f"; an argument that the YAML file does not list is added with a plus: +{full_key}=..."
        return f"unknown key '{full_key}': {where} has no '{key}'{hint}"
    if "Missing mandatory value" in first:
        return f"{full_key}: a value is required"
    return f"{full_key}: {first}" if full_key and full_key not in first else first
