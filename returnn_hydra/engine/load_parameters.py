"""The parameters of a checkpoint into a model, with an error that says in a line where they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from returnn_hydra.usage import UsageError

MOST_NAMES = 3
"""Named of each kind of difference."""


def load_parameters(model: nn.Module, parameters: Mapping[str, Tensor], where: str, advice: str) -> None:
    """Give a model the parameters and buffers of a checkpoint.

    Args:
        where: the checkpoint, in words.
        advice: what to do if they don't fit.

    Raises:
        UsageError: other names, or other shapes.
    """
    found = "; ".join(differences(parameters, model.state_dict()))
    if found:
        raise UsageError(f"the parameters of {where} don't fit the model, {type(model).__name__}: {found}. {advice}")
    model.load_state_dict(parameters)


def differences(saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Iterator[str]:
    """What is of another shape, missing or too much in the checkpoint, each with some examples."""
    shapes = [
        f"{name} {tuple(saved[name].shape)}, the model's {tuple(value.shape)}"
        for name, value in own.items()
        if name in saved and saved[name].shape != value.shape
    ]
    kinds = {
        "of another shape": shapes,
        "missing": [name for name in own if name not in saved],
        "unknown to the model": [name for name in saved if name not in own],
    }
    for kind, names in kinds.items():
        if names:
            yield f"{len(names)} {kind} ({', '.join(names[:MOST_NAMES])}{', ...' if len(names) > MOST_NAMES else ''})"
