"""Packages that only some sources need."""

from __future__ import annotations

import importlib
from types import ModuleType

from returnn_hydra.data.dataset import DataError


def require(module: str, extra: str) -> ModuleType:
    """Import a module of an optional extra.

    Raises:
        DataError: it is not installed; says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"this needs the package {module}: pip install 'returnn-hydra[{extra}]' ({error})") from error
