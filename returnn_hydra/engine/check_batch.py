"""A look ahead whether a batch fits into memory: forward and backward, and afterwards everything is as before."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from returnn_hydra.batch import Batch
from returnn_hydra.engine.device import seed_everything
from returnn_hydra.engine.evaluator import TrainStep, checked
from returnn_hydra.engine.updater import Updater, sum_of


def try_batch(model: nn.Module, train_step: TrainStep, updater: Updater, batch: Batch) -> None:
    """The memory of a training step but for the optimizer's; no update.

    Parameters, buffers (BatchNorm's statistics) and random numbers are afterwards what they were; no gradient is left.
    """
    device = updater.device
    with untouched(model, device):
        seed_everything(device, 0)
        with updater.autocast():
            losses = checked(train_step(model, batch.to(device)))
        sum_of([loss.sum for loss in losses.values() if not loss.as_error]).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # errors of the device come here


@contextlib.contextmanager
def untouched(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Puts the buffers and all generators of random numbers back, and takes the gradients away."""
    buffers = [buffer.detach().clone() for buffer in model.buffers()]
    generators = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        for parameter in model.parameters():
            parameter.grad = None
