"""Errors of the configuration: short, with the path, the value, what was expected and the nearest right name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(Exception):
    """The configuration can't be used; `str()` is the whole message for the user."""

    exit_code = 2


def nearest(name: str, candidates: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the candidate that looks most like `name`, or nothing."""
    names = [str(candidate) for candidate in candidates]
    found = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not found:
        by_lower = {candidate.lower(): candidate for candidate in names}
        found = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)]
    return f"; did you mean '{found[0]}'?" if found else ""


def listed(names: Iterable[str], most: int = 12) -> str:
    """The names for an error message, cut after `most`."""
    ordered = sorted(str(name) for name in names)
    return ", ".join(ordered[:most]) + (f", ... ({len(ordered)} in all)" if len(ordered) > most else "")
