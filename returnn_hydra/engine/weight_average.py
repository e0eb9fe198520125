"""The exponential moving average of the parameters (EMA), for evaluation and for the saved model.

After every update `average = decay * average + (1 - decay) * parameter`; after the first one it is the parameter itself
(as torch.optim.swa_utils.AveragedModel does). Buffers, such as BatchNorm's statistics, are not averaged: the model's
own are used with either set of parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Keeps one more copy of all parameters that are trained.

    Raises:
        ValueError: `decay` is not between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self._mix = get_ema_multi_avg_fn(decay)
        self._parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._averages: list[Tensor] = []
        """One for each parameter; none before the first update."""

    def update(self) -> None:
        """The optimizer has made a step."""
        current: list[Any] = [parameter.detach() for parameter in self._parameters.values()]
        if self._averages:
            self._mix(self._averages, current, 0)
        else:
            self._averages = [value.clone() for value in current]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged parameters; after it, its own again, bit by bit."""
        if not self._averages:
            yield
            return
        own = [parameter.detach().clone() for parameter in self._parameters.values()]
        self._set(self._averages)
        try:
            yield
        finally:
            self._set(own)

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self._parameters.values(), values, strict=True):
            parameter.copy_(value)

    def model_state(self) -> dict[str, Any]:
        """The model's state dict with the averaged parameters, tied ones under all their names."""
        by_id = dict(zip(map(id, self._parameters.values()), self._averages, strict=False))
        state = self.model.state_dict(keep_vars=True)
        return {name: by_id.get(id(value), value.detach()) for name, value in state.items()}

    def trained_parameters(self) -> dict[str, Tensor]:
        """What the optimizer works on, by name; nothing as long as that is the same."""
        return {name: value.detach() for name, value in self._parameters.items()} if self._averages else {}

    def load(self, trained: Mapping[str, Tensor]) -> None:
        """The model has a saved `model_state`: take the averages out of it, and put the trained parameters in."""
        self._averages = []
        if trained:
            self._averages = [parameter.detach().clone() for parameter in self._parameters.values()]
            self._set([trained[name] for name in self._parameters])
