"""Parts that a user combined and that don't fit together: one error class, and looks at a model before it is run."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

STREAMS = ("features", "lengths", "labels", "label_lengths")
"""What the models of this package call the arguments of their `forward`; such a name is taken by its word."""


class UsageError(ValueError):
    """A model, a step, a search, a file and the data don't fit together. `str()` is the whole message for the user."""

    exit_code = 2


def check_call(user: object, model: nn.Module, arguments: tuple[str, ...], like: str) -> None:
    """Whether a model can be called with these arguments, one after the other.

    Args:
        user: the step that will do it.
        arguments: named as in `STREAMS`.
        like: choices of `model` that can.

    Raises:
        UsageError: naming what the step gives, what the model takes, and models that fit.
    """
    taken = inspect.signature(model.forward)
    try:
        bound = taken.bind(*arguments).arguments
        fits = all(name not in STREAMS or name == value for name, value in bound.items())
    except TypeError:
        fits = False
    if not fits:
        raise UsageError(
            f"{type(user).__name__} calls its model with ({', '.join(arguments)}), but {type(model).__name__} takes "
            f"({', '.join(taken.parameters)}); models that fit: {like}"
        )


def check_attributes(user: object, model: nn.Module, names: tuple[str, ...], like: str) -> None:
    """Whether a model has these attributes.

    Raises:
        UsageError: naming the first that is missing, and models that fit.
    """
    missing = [name for name in names if not hasattr(model, name)]
    if missing:
        raise UsageError(
            f"{type(user).__name__} needs a model with {' and '.join(names)}, and {type(model).__name__} has no "
            f"{missing[0]}; models that fit: {like}"
        )


def described(value: Any) -> str:
    """What a model returned, in a few words: `(tensor (2, 7, 9), tensor (2,))`."""
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(described, value))})"
    return type(value).__name__
