"""Hydra's and OmegaConf's errors in one line: path, value, what was expected, nearest right name."""

from __future__ import annotations

import re

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from returnn_hydra.config.compose import describe_omegaconf
from returnn_hydra.config.errors import ConfigError, listed, nearest
from returnn_hydra.config.paths import config_dir

LAUNCHERS = ("joblib", "ray", "rq", "submitit")
"""Plugins of Hydra."""
NO_CHOICE = "Config group override must be a string or a list"
"""Hydra's words for `model=null`, an error of no class of its own."""


def explain(error: BaseException) -> str | None:
    """The message for an error of the configuration; None when it is something else."""
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, OverrideParseException):
        return _unreadable_override(error.override)
    if isinstance(error, MissingConfigException):
        return _missing_choice(error)
    if isinstance(error, ConfigCompositionException) and isinstance(error.__cause__, OmegaConfBaseException):
        return describe_omegaconf(error.__cause__)
    if isinstance(error, OmegaConfBaseException):
        return describe_omegaconf(error)
    if isinstance(error, HydraException):
        return (
            _sweep_without_flag(str(error)) or _superfluous_plus(str(error)) or _override_of_unknown_group(str(error))
        )
    if isinstance(error, ValueError) and str(error).startswith(NO_CHOICE):
        return "a group (model=..., datasets=..., ...) can't be null: say the name of a choice"
    return None


def _unreadable_override(word: str) -> str:
    """What is wrong with a word of the command line."""
    text = f"cannot read the override '{word}': expected KEY=VALUE"
    if "=" not in word:
        groups = [folder.name for folder in config_dir().iterdir() if (folder / f"{word}.yaml").is_file()]
        return text + (f"; did you mean '{sorted(groups, key='task'.__ne__)[0]}={word}'?" if groups else "")
    key, _, value = word.partition("=")
    value = value.strip("'\"")
    return f"""{text}; a value with spaces or special characters needs quotation marks of its own: '{key}="{value}"'"""


def _sweep_without_flag(message: str) -> str | None:
    found = re.search(r"Ambiguous value for argument '([^=]+)=(.*?)'\n", message)
    if found is None:
        return None
    key, value = found.groups()
    return f"{key}={value}: several values; add -m for a run with each of them, or write {key}=[{value}] for a list"


def _missing_choice(error: MissingConfigException) -> str:
    config, options = error.missing_cfg_file or "", list(error.options or [])
    group, _, choice = config.rpartition("/")
    if not group:
        return str(error).splitlines()[0]
    plugin = (
        f"; pip install hydra-{choice}-launcher brings it" if group == "hydra/launcher" and choice in LAUNCHERS else ""
    )
    return f"{group}={choice}: no such choice{plugin or nearest(choice, options)} (there is: {listed(options)})"


def _superfluous_plus(message: str) -> str | None:
    found = re.search(r"Could not append to config.*is already at '([^']+)'", message, re.DOTALL)
    return (
        f"+{found[1]}: the configuration has '{found[1]}' already; leave the plus out: {found[1]}=..."
        if found
        else None
    )


def _override_of_unknown_group(message: str) -> str:
    found = re.search(r"Could not override '([^'@]+)[^']*'", message)
    if found is None:
        return " ".join(line.strip() for line in message.splitlines()[:3])
    groups = [folder.name for folder in config_dir().iterdir() if folder.is_dir()]
    return f"unknown key '{found[1]}'{nearest(found[1], groups)}"
