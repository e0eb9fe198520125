"""returnn.__main__, returnn.rnn: the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from returnn_hydra.compat.shim.config import get_global_config

__all__ = ["init", "main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Start another process for another run.

    Raises:
        RuntimeError: always: a run is going on.
    """
    raise RuntimeError("returnn.__main__.main: this process runs a configuration already; start scripts/rnn.py instead")


def init(**_options: Any) -> None:
    """Prepare RETURNN inside of another program.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        "returnn.rnn.init: start scripts/rnn.py with the configuration; inside of one, get_global_config() and"
        " init_dataset(...) need no preparation"
    )


def __getattr__(name: str) -> Any:
    if name == "config":
        return get_global_config(raise_exception=False)
    raise AttributeError(name)
