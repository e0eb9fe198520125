"""Scores of a model on a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from returnn_hydra.batch import Batch, Loss
from returnn_hydra.engine.bad_batch import naming
from returnn_hydra.engine.scores import Score, ScoreSums
from returnn_hydra.usage import UsageError, described

TrainStep = Callable[[nn.Module, Batch], Mapping[str, Loss]]


def checked(losses: Any) -> Mapping[str, Loss]:
    """What a train step returned.

    Raises:
        UsageError: it is no dictionary of losses.
    """
    if isinstance(losses, Mapping) and all(isinstance(loss, Loss) for loss in losses.values()):
        return losses
    found = (
        f"{{{', '.join(f'{name}: {described(value)}' for name, value in losses.items())}}}"
        if isinstance(losses, Mapping)
        else described(losses)
    )
    raise UsageError(f"train_step returned {found}; expected {{name: returnn_hydra.batch.Loss(sum, count)}}")


def evaluate(
    model: nn.Module, train_step: TrainStep, batches: Iterable[Batch], device: torch.device, autocast: Any
) -> dict[str, Score]:
    """The losses of `train_step` over all batches, without dropout and gradients.

    Args:
        autocast: a context manager factory: mixed precision as in training.
    """
    sums = ScoreSums()
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                with naming(batch), autocast():
                    sums.add(checked(train_step(model, batch.to(device))))
    finally:
        model.train(was_training)
    return sums.scores()
