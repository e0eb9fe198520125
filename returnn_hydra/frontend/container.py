"""Lists of modules and of parameters; their entries are named "0", "1", ... or by the keys of a dict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from returnn_hydra.frontend.module import Functional, Module
from returnn_hydra.frontend.parameter import Parameter


class _Container(Module):
    """Entries in order, as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self._names: list[str] = []

    def _add(self, name: str, value: Any) -> None:
        setattr(self, name, value)
        self._names.append(name)

    def _values(self) -> list[Any]:
        return [getattr(self, name) for name in self._names]

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values())

    def keys(self) -> list[str]:
        return list(self._names)

    def values(self) -> list[Any]:
        return self._values()

    def items(self) -> list[tuple[str, Any]]:
        return list(zip(self._names, self._values(), strict=True))

    def __getitem__(self, index: int | slice | str) -> Any:
        if isinstance(index, slice):
            return type(self)(dict(self.items()[index]))  # type: ignore[call-arg]
        return getattr(self, index) if isinstance(index, str) else self._values()[index]

    def __setitem__(self, index: int | slice | str, value: Any) -> None:
        if isinstance(index, slice):
            self._replace(index, list(value))
        elif isinstance(index, str) and index not in self._names:
            self._add(index, self._entry(value))
        else:
            setattr(self, index if isinstance(index, str) else self._names[index], self._entry(value))

    def __delitem__(self, index: int | slice) -> None:
        if not isinstance(index, slice):
            index = slice(index, index + 1 or None)
        self._replace(index, [])

    def _entry(self, value: Any) -> Any:
        """What is kept of a value that is put in."""
        return value

    def _replace(self, index: slice, values: list[Any]) -> None:
        """Other entries in place of a slice; entries with a number for a name are numbered anew."""
        items = self.items()
        items[index] = [("", value) for value in values]
        for name in self._names:
            delattr(self, name)
        self._names = []
        for number, (name, value) in enumerate(items):
            self._add(name if name and not name.isdigit() else str(number), self._entry(value))


def _entries(values: tuple[Any, ...], single: type) -> list[tuple[str, Any]]:
    """(name, value) pairs of what a container was called with."""
    if len(values) == 1 and isinstance(values[0], dict):
        return list(values[0].items())
    if len(values) == 1 and isinstance(values[0], _Container):
        return values[0].items()
    if len(values) == 1 and not isinstance(values[0], single) and isinstance(values[0], Iterable):
        values = tuple(values[0])
    return [(str(index), value) for index, value in enumerate(values)]


class ModuleList(_Container):
    """Modules in order. Functions become modules."""

    def __init__(self, *modules: Any) -> None:
        super().__init__()
        for name, module in _entries(modules, Module):
            self._add(name, _as_module(module))

    def _entry(self, value: Any) -> Module:
        return _as_module(value)

    def append(self, module: Any) -> ModuleList:
        self._add(str(len(self)), _as_module(module))
        return self

    def extend(self, modules: Iterable[Any]) -> ModuleList:
        for module in modules:
            self.append(module)
        return self


def _as_module(value: Any) -> Module:
    if isinstance(value, Module):
        return value
    if callable(value):
        return Functional(value)
    raise TypeError(f"expected a module or a function, got {value!r}")


class Sequential(ModuleList):
    """Each module gets the output of the one before.

    Called with `collected_outputs={}`, it puts every module's output there under its name.
    """

    def __call__(self, inp: Any, *, collected_outputs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        for name, module in self.items():
            inp = module(inp, **kwargs)
            if collected_outputs is not None:
                collected_outputs[name] = inp
        return inp


class ParameterList(_Container):
    """Parameters in order."""

    def __init__(self, *parameters: Any) -> None:
        super().__init__()
        for name, parameter in _entries(parameters, Parameter):
            self._add(name, parameter)

    def append(self, parameter: Parameter) -> ParameterList:
        self._add(str(len(self)), parameter)
        return self

    def extend(self, parameters: Iterable[Parameter]) -> ParameterList:
        for parameter in parameters:
            self.append(parameter)
        return self


def sequential(source: Any, *modules: Callable[..., Any]) -> Any:
    """Apply one after the other."""
    for module in modules:
        source = module(source)
    return source
