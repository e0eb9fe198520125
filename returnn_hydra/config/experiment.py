"""An experiment beside another choice of a group: what it says about its own choice must not slip into the other."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from omegaconf import OmegaConf

from returnn_hydra.config.compose import load_saved, override_key
from returnn_hydra.config.errors import ConfigError, listed


def check_experiment(choices: Mapping[str, str | None], words: Collection[str], folders: Collection[Path]) -> None:
    """Hydra lays an experiment's values over any choice of a group, so those for one model would change another.

    Args:
        choices: the chosen option of every group.
        words: the command line's overrides; a key that is given there is settled.
        folders: where the configuration files are.

    Raises:
        ConfigError: the experiment has values for its own choice of a group, and the command line another choice.
    """
    name = choices.get("experiment")
    own, values = _read(name, folders) if name else ({}, {})
    given = {override_key(word) for word in words}
    for group, choice in own.items():
        if choices.get(group) == choice or not isinstance(values.get(group), dict):
            continue
        keys = [key for key in _leaves(values[group], group) if not _is_given(key, given - {group})]
        if keys:
            raise ConfigError(
                f"{group}={choices.get(group)}: experiment={name} has values for its own {group}={choice}, which would "
                f"stay: {listed(keys, 6)}; give these on the command line as well, or take a copy of "
                f"conf/experiment/{name}.yaml with another {group}"
            )


def _read(name: str, folders: Collection[Path]) -> tuple[dict[str, str], dict[str, Any]]:
    """The choices that an experiment makes, and its values, with those of the experiments that it builds on."""
    file = next((path for folder in folders if (path := folder / "experiment" / f"{name}.yaml").is_file()), None)
    if file is None:  # Hydra finds files in packages too
        return {}, {}
    content: Any = OmegaConf.to_container(load_saved(file))
    choices: dict[str, str] = {}
    values: Any = OmegaConf.create({})
    for entry in content.pop("defaults", []):
        if isinstance(entry, dict):
            choices.update({str(key).removeprefix("override ").lstrip("/"): str(value) for key, value in entry.items()})
        elif entry != "_self_":
            more, below = _read(str(PurePosixPath(name).parent / entry), folders)
            choices.update(more)
            values = OmegaConf.merge(values, below)
    plain: Any = OmegaConf.to_container(OmegaConf.merge(values, content))
    return choices, plain


def _leaves(values: Mapping[str, Any], path: str) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value and "_target_" not in value:
            yield from _leaves(value, f"{path}.{key}")
        else:
            yield f"{path}.{key}"


def _is_given(key: str, given: Collection[str]) -> bool:
    return any(key == word or key.startswith(f"{word}.") for word in given)
