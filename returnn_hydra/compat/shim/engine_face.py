"""What functions of MiniReturnn's configs ask of `run_ctx.engine`: the model, the data sets, their vocabularies."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from returnn_hydra.compat.shim.datasets import init_dataset


class EngineFace:
    """An engine's attributes; training and forwarding themselves are not done by it.

    Args:
        config: of the run.
        dataset: name ("train", "forward_data", ...) to what the config says of it; None: there is none.
        is_training: RETURNN's engine has its data sets for training, or else for forward.

    `_model` (also `model`) may be replaced, by a compiled one for example: steps take what it is then.
    """

    def __init__(
        self, config: Any, dataset: Callable[[str], Any], *, is_training: bool, epoch: int, device: str
    ) -> None:
        self.config = config
        self.epoch = epoch
        self._device = device
        self._dataset = dataset
        self._is_training = is_training
        self._model: nn.Module | None = None

    @property
    def model(self) -> nn.Module | None:
        return self._model

    def _made(self, name: str) -> Any:
        value = self._dataset(name)
        return None if value is None else init_dataset(value)

    @functools.cached_property
    def train_dataset(self) -> Any:
        """None outside of trainings."""
        return self._made("train") if self._is_training else None

    @functools.cached_property
    def dev_dataset(self) -> Any:
        return self._made("dev") if self._is_training else None

    @functools.cached_property
    def forward_dataset(self) -> Any:
        """None in trainings."""
        return None if self._is_training else self._made("forward_data")

    def __getattr__(self, name: str) -> Any:
        there = "config, epoch, _model, train_dataset, dev_dataset and forward_dataset"
        raise AttributeError(f"run_ctx.engine has no '{name}' in returnn-hydra; it has {there}")
