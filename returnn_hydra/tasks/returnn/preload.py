"""`preload_from_files`, `load_on_init`: parts of a model from other checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from returnn_hydra.config.errors import ConfigError, listed, nearest
from returnn_hydra.engine.files import FileSystem
from returnn_hydra.engine.tensor_file import read_foreign_tensors

OPTIONS = (
    "filename",
    "init_for_train",
    "prefix",
    "checkpoint_key",
    "ignore_params",
    "ignore_params_prefixes",
    "var_name_mapping",
    "ignore_missing",
    "custom_missing_load_func",
)
PART_OPTIONS = (
    "filename",
    "load_if_prefix",
    "ignore_missing",
    "ignore_params",
    "ignore_params_prefixes",
    "var_name_mapping",
)
logger = logging.getLogger(__name__)


def preload(
    model: nn.Module, files: Mapping[str, Mapping[str, Any]], *, training: bool, from_scratch: bool
) -> set[str]:
    """Load each of the files that concerns this task, the first key in sort order last: it wins.

    Returns:
        the names of what was loaded.

    Raises:
        ConfigError: an unknown option, a missing file or parameter, another shape.
    """
    of_a_dict = hasattr(model, "files_of_parts")
    loaded: set[str] = set()
    for key in sorted(files, reverse=True):
        options = dict(files[key])
        path = f"preload_from_files.{key}"
        for name in options:
            if name not in OPTIONS:
                raise ConfigError(f"{path}: unknown option {name!r}{nearest(name, OPTIONS)}")
        wanted = options.get("init_for_train", False)
        if wanted not in (True, False, "always"):
            raise ConfigError(f"{path}.init_for_train={wanted!r}: expected true, false or 'always'")
        if wanted == "always" or ((wanted and from_scratch) if training else not wanted):
            if of_a_dict:  # as RETURNN's TensorFlow backend: the prefix may be anywhere in the name
                loaded |= _load(model, {**options, "load_if_prefix": options.get("prefix", ""), "prefix": ""}, path)
            else:
                loaded |= _load(model, options, path)
        if wanted == "always" and training:
            _freeze(model, options.get("prefix", ""))
    return loaded


def load_parts(model: nn.Module, given: Collection[str] = ()) -> set[str]:
    """Load what sub-networks with `load_on_init` name, the outer ones first.

    Args:
        given: parameters that have got values; these stay, if they are trained.

    Returns:
        the names of what was loaded.

    Raises:
        ConfigError: an unknown option, a missing file or parameter, another shape.
    """
    kept = {name for name, parameter in model.named_parameters() if name in given and parameter.requires_grad}
    loaded: set[str] = set()
    for prefix, option in sorted(files_of_parts(model).items()):
        path = f"{prefix}load_on_init"
        option = option() if callable(option) else option
        options = {"filename": option} if isinstance(option, (str, Path)) else option
        if not isinstance(options, Mapping):
            raise ConfigError(f"{path}: {option!r} is neither a file nor a dict with 'filename'")
        for name in options:
            if name not in PART_OPTIONS:
                raise ConfigError(f"{path}: unknown option {name!r}{nearest(name, PART_OPTIONS)}")
        loaded |= _load(model, {**options, "prefix": prefix}, path, kept)
    return loaded


def files_of_parts(model: nn.Module) -> dict[str, Any]:
    """`load_on_init` by the prefix of the names."""
    return model.files_of_parts() if hasattr(model, "files_of_parts") else {}  # type: ignore[operator]


def _load(model: nn.Module, options: Mapping[str, Any], path: str, kept: Collection[str] = ()) -> set[str]:
    if options.get("filename") is None:
        return set()
    only = options.get("load_if_prefix") or ""
    prefix = options.get("prefix", "")
    state = _state(Path(options["filename"]), options.get("checkpoint_key", "model"), path)
    mapping = options.get("var_name_mapping") or {}
    ignored = set(options.get("ignore_params") or ())
    prefixes = tuple(options.get("ignore_params_prefixes") or ())
    missing, found = [], {}
    for name, value in model.state_dict().items():
        if not name.startswith(prefix) or name in kept or only not in name[len(prefix) :]:
            continue
        rest = name[len(prefix) :].replace(only, "") if only else name[len(prefix) :]
        theirs = mapping.get(name, mapping.get(rest, rest))
        if theirs in ignored or (prefixes and theirs.startswith(prefixes)):
            continue
        loaded = state.get(theirs)
        if loaded is None and options.get("custom_missing_load_func"):
            function = options["custom_missing_load_func"]
            loaded = function(name=name, shape=tuple(value.shape), preload_model_state=state)
        if loaded is None:
            missing.append(theirs)
        elif loaded.shape != value.shape:
            raise ConfigError(f"{path}: {theirs} has shape {tuple(loaded.shape)}, {name} {tuple(value.shape)}")
        else:
            found[name] = loaded
    if missing and not options.get("ignore_missing"):
        raise ConfigError(f"{path}: {options['filename']} lacks {listed(missing)}{nearest(missing[0], state)}")
    model.load_state_dict(found, strict=False)
    logger.info("Preloaded %d parameters from %s", len(found), options["filename"])
    return set(found)


def _state(file: Path, key: str | None, path: str) -> Mapping[str, torch.Tensor]:
    candidates = (file, file.with_name(file.name + ".pt"))
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise ConfigError(f"{path}.filename={file}: no such file")
    if found.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(str(found))
    content = read_foreign_tensors(FileSystem(), found)
    if key is None or (key not in content and any(isinstance(value, torch.Tensor) for value in content.values())):
        return content
    if key not in content:
        raise ConfigError(f"{path}.checkpoint_key={key!r}: {found} has {listed(content)}{nearest(key, content)}")
    return content[key]


def _freeze(model: nn.Module, prefix: str) -> None:
    for name, parameter in model.named_parameters():
        if name.startswith(prefix):
            parameter.requires_grad_(False)
