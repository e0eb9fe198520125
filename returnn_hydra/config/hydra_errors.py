"""Hydra's and OmegaConf's errors in one line: path, value, what was expected, nearest right name."""

from __future__ import annotations

import re

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from returnn_hydra.config.compose import describe_omegaconf
from returnn_hydra.config.errors import ConfigError, listed, nearest
from returnn_hydra.config.paths import config_dir


def explain(error: BaseException) -> str | None:
    """The message for an error of the configuration; None when it is something else."""
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, OverrideParseException):
        return f"cannot read the override '{error.override}': {str(error.args[0]).splitlines()[-1]}"
    if isinstance(error, MissingConfigException):
        return _missing_choice(error)
    if isinstance(error, ConfigCompositionException) and isinstance(error.__cause__, OmegaConfBaseException):
        return describe_omegaconf(error.__cause__)
    if isinstance(error, OmegaConfBaseException):
        return describe_omegaconf(error)
    if isinstance(error, HydraException):
        return _override_of_unknown_group(str(error))
    return None


def _missing_choice(error: MissingConfigException) -> str:
    config, options = error.missing_cfg_file or "", list(error.options or [])
    group, _, choice = config.rpartition("/")
    if not group:
        return str(error).splitlines()[0]
    return f"{group}={choice}: no such choice{nearest(choice, options)} (there is: {listed(options)})"


def _override_of_unknown_group(message: str) -> str:
    found = re.search(r"Could not override '([^'@]+)[^']*'", message)
    if found is None:
        return " ".join(line.strip() for line in message.splitlines()[:3])
    groups = [folder.name for folder in config_dir().iterdir() if folder.is_dir()]
    return f"unknown key '{found[1]}'{nearest(found[1], groups)}"
