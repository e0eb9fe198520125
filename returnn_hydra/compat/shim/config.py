"""returnn.config: the configuration of the run, for code inside it that asks for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from returnn_hydra.config.returnn_values import ReturnnConfig
from returnn_hydra.frontend.ambient import ambient, ambient_state

__all__ = ["Config", "get_global_config", "global_config_ctx", "set_global_config"]


class Config(ReturnnConfig):
    """RETURNN's Config: can be made from a dict."""

    def __init__(self, items: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.update(items or {})


_active: list[Any] = []


def get_global_config(
    *, raise_exception: bool = True, auto_create: bool = False, return_empty_if_none: bool = False
) -> Any:
    """The configuration that is being loaded or run.

    Raises:
        RuntimeError: there is none.
    """
    if _active:
        return _active[-1]
    if auto_create:
        set_global_config(Config())
        return _active[-1]
    if return_empty_if_none:
        return Config()
    if raise_exception:
        raise RuntimeError("get_global_config: no RETURNN configuration is active")
    return None


def set_global_config(config: Any) -> None:
    """From now on this is the configuration."""
    _active[:] = [config]


@contextlib.contextmanager
def global_config_ctx(config: Any) -> Iterator[None]:
    """This is the configuration inside the block; the frontend looks up its options there, too."""
    _active.append(config)
    options = config.to_dict() if isinstance(config, Config) else ambient.options
    try:
        with ambient_state(options=options):
            yield
    finally:
        _active.remove(config)
