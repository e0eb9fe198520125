"""`preload_from_files`: parts of a model from other checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping
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
logger = logging.getLogger(__name__)


def preload(model: nn.Module, files: Mapping[str, Mapping[str, Any]], *, training: bool, from_scratch: bool) -> None:
    """Load each of the files that concerns this task, the first key in sort order last: it wins.

    Raises:
        ConfigError: an unknown option, a missing file or parameter, another shape.
    """
    for key in sorted(files, reverse=True):
        options = files[key]
        path = f"preload_from_files.{key}"
        for name in options:
            if name not in OPTIONS:
                raise ConfigError(f"{path}: unknown option {name!r}{nearest(name, OPTIONS)}")
        wanted = options.get("init_for_train", False)
        if wanted not in (True, False, "always"):
            raise ConfigError(f"{path}.init_for_train={wanted!r}: expected true, false or 'always'")
        if wanted == "always" or ((wanted and from_scratch) if training else not wanted):
            _load(model, options, path)
        if wanted == "always" and training:
            _freeze(model, options.get("prefix", ""))


def _load(model: nn.Module, options: Mapping[str, Any], path: str) -> None:
    if options.get("filename") is None:
        return
    prefix = options.get("prefix", "")
    state = _state(Path(options["filename"]), options.get("checkpoint_key", "model"), path)
    mapping = options.get("var_name_mapping") or {}
    ignored = set(options.get("ignore_params") or ())
    prefixes = tuple(options.get("ignore_params_prefixes") or ())
    missing, found = [], {}
    for name, value in model.state_dict().items():
        if not name.startswith(prefix):
            continue
        theirs = mapping.get(name, mapping.get(name[len(prefix) :], name[len(prefix) :]))
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
