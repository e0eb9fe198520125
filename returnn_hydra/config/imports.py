"""Large imports without the garbage collector."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Inside, the garbage collector rests, and afterwards it leaves alone what is there.

    torch and its compiler, which the first optimizer imports, make 300,000 objects that all stay. Looking through them
    again and again while they are made is a seventh of the time from the command to the first update.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
