"""returnn.util.debug, returnn.util.better_exchook: Python's own tracebacks are used."""

from __future__ import annotations

import faulthandler
import sys
import traceback
from typing import Any

__all__ = ["better_exchook", "init_better_exchook", "init_faulthandler", "install"]


def install() -> None:
    """Nothing to install."""


init_better_exchook = install


def init_faulthandler(**_options: Any) -> None:
    """A traceback on a crash."""
    faulthandler.enable()


def better_exchook(exception_type: Any, value: Any, tb: Any, **_options: Any) -> None:
    """Print a traceback."""
    traceback.print_exception(exception_type, value, tb, file=sys.stderr)
