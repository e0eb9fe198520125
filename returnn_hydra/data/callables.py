"""Functions of the user in the place of a number: called with those of the offered arguments that they take."""

from __future__ import annotations

import functools
import inspect
from typing import Any


def by_name(value: Any) -> Any:
    """A function that takes any keyword arguments, and hands on those that `value` takes; no function: as it is."""
    if not callable(value):
        return value
    taken = inspect.signature(value).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return value

    @functools.wraps(value)
    def call(**offered: Any) -> Any:
        return value(**{key: item for key, item in offered.items() if key in taken})

    return call
