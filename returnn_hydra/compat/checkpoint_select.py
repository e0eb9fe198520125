"""Which checkpoint a RETURNN config starts from.

Files are `<model>.<epoch, three digits>.pt` and `<model>.<epoch>.opt.pt`; a training can only go on from an epoch that
has both. An existing epoch of the training wins over `load` and `import_model_train_epoch1`, unless `start_epoch` is a
number: 1 starts anew, N goes on from epoch N - 1, or from `load`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from returnn_hydra.config.errors import ConfigError

SUFFIXES = (".pt", ".index", ".meta")


@dataclass(frozen=True)
class Selection:
    """What is loaded."""

    file: str | None = None
    """Without suffix; None: random parameters."""
    epoch: int | None = None
    """The epoch of the file; None: it is foreign, or there is none."""
    start_epoch: int = 1
    """Where a training goes on."""
    with_optimizer: bool = False
    """The optimizer's state is loaded, too."""
    existing: Mapping[int, str] = field(default_factory=dict)
    """Epochs with a checkpoint, and their files without suffix."""


def select_checkpoint(values: Mapping[str, Any]) -> Selection:
    """The checkpoint for the config's values.

    Raises:
        ConfigError: a file or epoch that is asked for, or that the task needs, does not exist.
    """
    training = values.get("task", "train") == "train"
    existing = existing_epochs(values.get("model"), with_optimizer=training)
    load = _existing_file("load", values)
    imported = _existing_file("import_model_train_epoch1", values)
    load_epoch = values.get("load_epoch") or values.get("epoch")
    if load_epoch is not None and load is None and load_epoch not in existing:
        raise _no_epoch(f"load_epoch={load_epoch}", values, existing)
    if not training:
        return _for_evaluation(values, existing, load, load_epoch)
    start = values.get("start_epoch", "auto")
    if start not in ("auto", None) and (not isinstance(start, int) or start < 1):
        raise ConfigError(f"start_epoch={start!r}: expected 'auto' or a number from 1")
    if isinstance(start, int) and existing and load is None:
        if start == 1:
            return Selection(imported, existing=existing)
        if start - 1 not in existing:
            raise _no_epoch(f"start_epoch={start} needs epoch {start - 1}", values, existing)
        return Selection(existing[start - 1], start - 1, start, True, existing)
    if existing and not (isinstance(start, int) and load is not None):
        newest = max(existing)
        return Selection(existing[newest], newest, newest + 1, True, existing)
    if load is not None:
        epoch = epoch_of_file(load)
        return Selection(load, epoch, (epoch or 0) + 1, epoch is not None, existing)
    return Selection(imported, existing=existing)


def _for_evaluation(
    values: Mapping[str, Any], existing: Mapping[int, str], load: str | None, load_epoch: int | None
) -> Selection:
    if load is None:
        if not existing:
            error = _no_epoch(f"task={values['task']}", values, existing)
            raise ConfigError(f"{error}; allow_random_model_init = True takes the model as it is made")
        load = existing[load_epoch or max(existing)]
    epoch = epoch_of_file(load)
    return Selection(load, epoch, (epoch or 0) + 1, False, existing)


def existing_epochs(model: str | None, with_optimizer: bool) -> dict[int, str]:
    """Epoch to file without suffix, for a checkpoint prefix."""
    if not model:
        return {}
    prefix = Path(model)
    names = {path.name for path in prefix.parent.glob("*.pt")} if prefix.parent.is_dir() else set()
    found = {}
    for name in sorted(names):
        match = re.fullmatch(re.escape(prefix.name) + r"\.(\d{3,})\.pt", name)
        if match and (not with_optimizer or f"{prefix.name}.{match[1]}.opt.pt" in names):
            found[int(match[1])] = f"{model}.{match[1]}"
    return dict(sorted(found.items()))


def epoch_file(model: str, epoch: int) -> str:
    """The checkpoint of an epoch, without suffix: `net.007`."""
    return f"{model}.{epoch:03d}"


def without_suffix(file: str) -> str:
    """`net.007.pt` as `net.007`."""
    return next((file.removesuffix(suffix) for suffix in SUFFIXES if file.endswith(suffix)), file)


def epoch_of_file(file: str) -> int | None:
    """The number at the end of a name like `model.010`, `model.pretrain.003` or `epoch.7`."""
    match = re.search(r"\.(\d+)$", without_suffix(file))
    return int(match[1]) if match else None


def _existing_file(option: str, values: Mapping[str, Any]) -> str | None:
    """The file of an option without suffix."""
    wanted = values.get(option)
    if not wanted:
        return None
    file = without_suffix(str(wanted))
    if not any(Path(file + suffix).is_file() for suffix in (".pt", ".index", ".safetensors")):
        folder = Path(file).parent
        there = sorted(path.name for path in folder.glob("*.pt"))[:8] if folder.is_dir() else []
        raise ConfigError(f"{option}={wanted}: no such checkpoint (in {folder} there is: {', '.join(there) or 'none'})")
    return file


def _no_epoch(what: str, values: Mapping[str, Any], existing: Mapping[int, str]) -> ConfigError:
    there = f"there is: {', '.join(map(str, existing))}" if existing else "there is none"
    return ConfigError(f"{what}: no such checkpoint of model={values.get('model')!r} ({there})")
