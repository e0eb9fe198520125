"""returnn.__main__, returnn.rnn: the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from returnn_hydra.compat.shim.config import get_global_config

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Start another process for another run.

    Raises:
        RuntimeError: always: a run is going on.
    """
    raise RuntimeError("returnn.__main__.main: this process runs a configuration already; start scripts/rnn.py instead")


def __getattr__(name: str) -> Any:
    if name == "config":
        return get_global_config(raise_exception=False)
    raise AttributeError(name)
