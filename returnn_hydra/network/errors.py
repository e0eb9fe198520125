"""Errors that name the layer, what was found there and the nearest right thing."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class NetworkError(ValueError):
    """A network dict that cannot be built or run; the message begins with the layer."""


class TooShort(NetworkError):
    """A sequence is shorter than a layer needs."""


def nearest(name: object, known: Iterable[str]) -> str:
    """' (did you mean ...?)' or ' (known: ...)', to put behind an unknown name."""
    names = sorted(known)
    matches = get_close_matches(str(name), names, n=1, cutoff=0.5)
    if matches:
        return f" (did you mean {matches[0]!r}?)"
    shown = ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
    return f" (known: {shown})" if names else ""
