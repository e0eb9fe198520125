"""RETURNN's `dynamic_learning_rate` function as a schedule."""

from __future__ import annotations

import inspect
from collections.abc import Callable


class DynamicLearningRate:
    """Calls the function with those of `global_train_step`, `epoch`, `epoch_continuous`, `learning_rate` it takes."""

    def __init__(self, function: Callable[..., float]) -> None:
        self.function = function
        parameters = inspect.signature(function).parameters.values()
        self._takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
        self._names = [parameter.name for parameter in parameters]

    def __call__(self, step: int, epoch: int, epoch_continuous: float, learning_rate: float) -> float:
        offered = {
            "global_train_step": step,
            "epoch": epoch,
            "epoch_continuous": epoch_continuous,
            "learning_rate": learning_rate,
        }
        given = {name: value for name, value in offered.items() if self._takes_all or name in self._names}
        return float(self.function(**given))
