"""State: a dict whose entries are attributes too, for what goes from one step to the next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from returnn_hydra.frontend.tensor import Tensor


class State(dict[str, Any]):
    """A dict with attribute access; `State(x)` copies a dict (or pairs), `State()` is empty."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if len(args) > 1 or (args and kwargs):
            raise TypeError(f"State: give one dict or keywords, not {args}")
        super().__init__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"state has no '{name}'; it has {list(self)}")

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.items())})"

    def flatten_tensors(self) -> list[Tensor]:
        """All tensors inside, in order."""
        return list(_tensors(self))

    @classmethod
    def cls_flatten_tensors(cls, value: Any) -> list[Tensor]:
        """All tensors inside a nested value."""
        return list(_tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


class LstmState(State):
    """Output `h` and cell `c` of an LSTM."""

    def __init__(self, *_args: Any, h: Any = None, c: Any = None) -> None:
        super().__init__(*_args)
        if not _args:
            self.h, self.c = h, c
