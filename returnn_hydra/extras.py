"""Optional packages: imported where they are used, with an error that says how to get them."""

from __future__ import annotations

import importlib
from typing import Any


class MissingExtra(ImportError):
    """The configuration asks for something whose package is not installed."""

    exit_code = 2


def require(module: str, extra: str, user: str | None = None) -> Any:
    """Import a module of an optional extra.

    Args:
        user: what needs it, in words of the user; default: the module's name.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"{user or module} needs the extra {extra}: pip install 'returnn-hydra[{extra}]' ({error})"
        ) from error
