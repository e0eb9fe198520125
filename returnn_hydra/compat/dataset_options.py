"""Reading the options of one RETURNN dict: each is taken once, and what nobody took is an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from returnn_hydra.config.errors import ConfigError, nearest

_NOTHING = object()


class Options:
    """The options of a dict such as `{"class": "HDFDataset", ...}`.

    Args:
        values: the dict.
        path: where it stands in the config, for errors: `train`, `train.datasets.zip`.
    """

    def __init__(self, values: Mapping[str, Any], path: str) -> None:
        self.values = dict(values)
        self.path = path
        self.taken: set[str] = set()
        self.notes: list[str] = []
        """What is left out because it has no effect here."""

    def take(self, name: str, default: Any = None) -> Any:
        self.taken.add(name)
        return self.values.get(name, default)

    def need(self, name: str) -> Any:
        value = self.take(name, _NOTHING)
        if value is _NOTHING:
            near = nearest(name, [key for key in self.values if key not in self.taken])
            raise ConfigError(f"{self.path}: {name!r} is missing{near}")
        return value

    def some(self, *names: str, **renamed: str) -> dict[str, Any]:
        """Those of the options that are there, under our names (`ours=theirs`)."""
        pairs = {**{name: name for name in names}, **renamed}
        self.taken.update(pairs.values())
        return {ours: self.values[theirs] for ours, theirs in pairs.items() if theirs in self.values}

    def idle(self, why: str, names: Iterable[str]) -> None:
        """These have no effect here."""
        for name in names:
            if self.take(name, _NOTHING) is not _NOTHING:
                self.notes.append(f"{self.path}.{name} has no effect: {why}")

    def only(self, name: str, allowed: Iterable[Any], instead: str) -> None:
        """Refuse all but the values that ask for nothing."""
        value = self.take(name, _NOTHING)
        if value is not _NOTHING and not any(value == fine and type(value) is type(fine) for fine in allowed):
            raise ConfigError(f"{self.path}.{name}={value!r}: {instead}")

    def finish(self) -> None:
        """Raise a ConfigError for options that nobody took."""
        for name in self.values:
            if name not in self.taken:
                raise ConfigError(f"{self.path}: unknown option {name!r}{nearest(name, self.taken)}")
