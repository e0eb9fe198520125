"""Modules: objects with parameters, found by their attributes, named by the path to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.hooks import RemovableHandle, setup_post_hook_on_method
from returnn_hydra.frontend.parameter import Parameter


class Module:
    """Base of everything with parameters: attributes that are parameters or modules belong to it.

    A parameter reachable by several paths has the shortest as its name (the first of them, as attributes were set).
    """

    def __init__(self) -> None:
        """Nothing to do; calling it is optional."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines no __call__")

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def default_initial_state(self, *, batch_dims: Sequence[Dim]) -> Any:
        """The state before the first step: that of every child which has one; None if none has."""
        from returnn_hydra.frontend.state import State

        state = State()
        for name, child in self.named_children():
            child_state = child.default_initial_state(batch_dims=batch_dims)
            if child_state:
                state[name] = child_state
        return state or None

    def get_default_name(self) -> str:
        """The class name in lower case."""
        return type(self).__name__.lower()

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules among the attributes."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        for _, child in self.named_children():
            yield child

    def named_modules(
        self, *, recurse: bool = True, include_self: bool = True, memo: Any = None, prefix: str = ""
    ) -> Iterator[tuple[str, Module]]:
        """All modules below with their paths, level by level; each module once."""
        seen: set[int] = set() if memo is None else memo
        level: list[tuple[str, Module]] = [(prefix, self)]
        if include_self and id(self) not in seen:
            yield prefix, self
        seen.add(id(self))
        while level:
            below: list[tuple[str, Module]] = []
            for path, module in level:
                for name, child in module.named_children():
                    if id(child) in seen:
                        continue
                    seen.add(id(child))
                    below.append((f"{path}.{name}" if path else name, child))
            yield from below
            level = below if recurse else []

    def modules(self, *, recurse: bool = True, include_self: bool = True) -> Iterator[Module]:
        for _, module in self.named_modules(recurse=recurse, include_self=include_self):
            yield module

    def named_parameters(self, *, recurse: bool = True) -> Iterator[tuple[str, Parameter]]:
        """All parameters with their paths; each parameter once."""
        seen: set[int] = set()
        modules = self.named_modules() if recurse else iter([("", self)])
        for path, module in modules:
            for name, value in module.own_parameters():
                if id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{path}.{name}" if path else name), value

    def own_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """The parameters among the attributes."""
        for name, value in list(vars(self).items()):
            if isinstance(value, Parameter):
                yield name, value

    def parameters(self, *, recurse: bool = True) -> Iterator[Parameter]:
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    @property
    def has_parameters(self) -> bool:
        return next(iter(self.parameters()), None) is not None

    def apply(self, fn: Callable[[Module], None]) -> Module:
        """Call `fn` on every module below and on this one."""
        for child in list(self.children()):
            child.apply(fn)
        fn(self)
        return self

    def to(self, *, device: str | None = None, dtype: str | None = None) -> None:
        """Move all parameters in place."""
        for parameter in self.parameters():
            parameter.to(device=device, dtype=dtype)

    def get_deep(self, target: str) -> Any:
        """The attribute at a path like "layers.0.ff".

        Raises:
            AttributeError: naming the part that is not there.
        """
        value: Any = self
        for part in target.split(".") if target else []:
            if not hasattr(value, part):
                raise AttributeError(f"'{target}': {value!r} has no '{part}'; it has {sorted(vars(value))}")
            value = getattr(value, part)
        return value

    def set_deep(self, target: str, value: Any) -> None:
        """Set the attribute at a path."""
        parent, _, name = target.rpartition(".")
        setattr(self.get_deep(parent), name, value)

    def register_forward_hook(self, hook: Callable[..., Any], *, prepend: bool = False) -> RemovableHandle:
        """Call hook(module, args, kwargs, output) after every call; what it returns (if not None) replaces the
        output."""
        return setup_post_hook_on_method(self, "__call__", hook, prepend=prepend)


class Functional(Module):
    """A function as a module."""

    def __init__(self, func: Callable[..., Any], *, attribs: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.func = func
        for name, value in (attribs or {}).items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        return f"<Functional {getattr(self.func, '__qualname__', self.func)}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.func(*args, **kwargs)
