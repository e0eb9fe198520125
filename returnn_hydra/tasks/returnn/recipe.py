"""What differs between configs with functions (`get_model`, `train_step`) and those with a network dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn

from returnn_hydra.batch import TensorSpec
from returnn_hydra.engine.scores import Score
from returnn_hydra.network.schedule import Stage
from returnn_hydra.optim.learning_rate_control import LearningRateControl


class Recipe(Protocol):
    """A model and its steps, made by a config."""

    specs: dict[str, TensorSpec]
    """The streams that training needs."""

    @property
    def num_pretrain_epochs(self) -> int:
        """Epochs at the beginning with a smaller network."""

    def files(self) -> AbstractContextManager[Any]:
        """Files that the model's own layers write, open while a task runs."""

    def model(self, epoch: int, step: int) -> nn.Module:
        """The model with its first parameters, on the session's device."""

    def stages(self, last: int) -> list[Stage]:
        """The epochs from 1 to the last one, parted where the model or the config changes."""

    def take_parameters(self, model: nn.Module, before: nn.Module, stage: Stage) -> None:
        """Fill a new stage's model from that of the stage before."""

    def learning_rate_control(self, rule: LearningRateControl) -> LearningRateControl:
        """The config's rule, and what the stages want instead."""

    def train_step(self) -> Any:
        """(model, batch) -> losses."""

    def set_progress(self, train_step: Any, model: nn.Module, epoch: int, step: int) -> None:
        """Tell the model or the step how far the training is, before it goes on."""

    def optimizer(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """The config's optimizer over the model's parameters."""

    def forward_step(self, epoch: int, step: int) -> Any:
        """(model, batch) -> outputs."""

    def score_keys(self, scores: Mapping[str, Mapping[str, Score]]) -> dict[str, float]:
        """The scores of an epoch, by data set and loss, under the keys of the learning-rate file."""

    def is_error(self, key: str) -> bool:
        """Whether a key of the learning-rate file is of an error (`as_error`), which has no exponential."""

    def split_key(self, key: str, datasets: Sequence[str]) -> tuple[str, str] | None:
        """The other way: data set and loss of a learning-rate file's key; None: it is no score of these data sets."""

    def choose_score(self, names: Sequence[str]) -> str | None:
        """The one of our names (`dev/ce`) that decides the learning rate."""
