"""Hooks on methods of one object: called after every call, with the arguments and the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Hook = Callable[..., Any]
"""hook(object, args, kwargs, result); what it returns takes the place of the result, unless it is None."""


class RemovableHandle:
    """Takes a hook off again."""

    def __init__(self, hooks: list[Hook], hook: Hook) -> None:
        self._hooks, self._hook = hooks, hook

    def remove(self) -> None:
        """Take it off."""
        if self._hook in self._hooks:
            self._hooks.remove(self._hook)


def setup_post_hook_on_method(obj: Any, attr: str, hook: Hook, *, prepend: bool = False) -> RemovableHandle:
    """Call `hook` after every call of this object's method `attr`; `__call__` means calls of the object itself.

    Args:
        prepend: before the hooks that are there already, instead of after them.
    """
    hooks: list[Hook] = vars(obj).setdefault("_hooks", {}).setdefault(attr, [])
    hooks.insert(0 if prepend else len(hooks), hook)
    cls = type(obj)
    hooked: frozenset[str] = getattr(cls, "_hooked_methods", frozenset())
    if attr not in hooked:
        # Python looks special methods up on the class: the object gets a class of its own.
        methods = {attr: _with_hooks(attr, getattr(cls, attr)), "_hooked_methods": hooked | {attr}}
        obj.__class__ = type(cls.__name__, (cls,), methods)
    return RemovableHandle(hooks, hook)


def _with_hooks(attr: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        for hook in vars(self)["_hooks"][attr]:
            changed = hook(self, args, kwargs, result)
            result = result if changed is None else changed
        return result

    return call
