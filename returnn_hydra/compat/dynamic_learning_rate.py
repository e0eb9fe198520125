"""RETURNN's `dynamic_learning_rate` function as a schedule."""

from __future__ import annotations

from collections.abc import Callable

from returnn_hydra.data.callables import by_name


class DynamicLearningRate:
    """Calls the function with those of `global_train_step`, `epoch`, `epoch_continuous`, `learning_rate` it takes."""

    def __init__(self, function: Callable[..., float]) -> None:
        self.function = by_name(function)

    def __call__(self, step: int, epoch: int, epoch_continuous: float, learning_rate: float) -> float:
        rate = self.function(
            global_train_step=step, epoch=epoch, epoch_continuous=epoch_continuous, learning_rate=learning_rate
        )
        return float(rate)
