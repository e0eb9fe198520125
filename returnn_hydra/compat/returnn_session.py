"""While this is active, a RETURNN config finds itself at home: its imports, its global config, its behaviour
version."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from returnn_hydra.compat.import_hook import returnn_imports
from returnn_hydra.compat.shim.config import global_config_ctx
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.frontend.ambient import NEWEST_BEHAVIOR_VERSION, ambient_state

FRONTEND_OPTIONS = ("rf_att_dropout_broadcast", "rf_dropout_broadcast")
"""Config keys that frontend functions look up."""


@contextlib.contextmanager
def returnn_session(config: Any, values: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Keep it open from loading a config (also as `active` of load_returnn_config) to the end of the run.

    Args:
        config: what `get_global_config()` gives inside.
        values: the config's values, if `config` is no ReturnnConfig.

    Raises:
        ConfigError: `behavior_version` does not exist.
    """

    def value(key: str) -> Any:
        return values.get(key) if values is not None else config.typed_value(key, None)

    version = value("behavior_version")
    if version is not None and not (isinstance(version, int) and 0 <= version <= NEWEST_BEHAVIOR_VERSION):
        raise ConfigError(f"behavior_version={version!r}: expected a number from 0 to {NEWEST_BEHAVIOR_VERSION}")
    options = {key: value(key) for key in FRONTEND_OPTIONS if value(key) is not None}
    dtype = value("default_float_dtype") or "float32"
    with (
        returnn_imports(),
        global_config_ctx(config),
        ambient_state(behavior_version=version, options=options, float_dtype=dtype),
    ):
        yield
