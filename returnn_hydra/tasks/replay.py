"""task=replay: run a batch again that gave bad numbers, and say where they come from."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import nn

from returnn_hydra.config.errors import ConfigError
from returnn_hydra.engine.bad_batch import FOLDER, describe_batch, load_batch
from returnn_hydra.engine.files import FileSystem
from returnn_hydra.engine.log import RESULTS
from returnn_hydra.tasks.context import Context
from returnn_hydra.tasks.parts import load_model

logger = logging.getLogger(__name__)


def run(context: Context) -> None:
    """Losses and gradients of `replay_file` (default: the newest saved batch) with the parameters of `load_epoch`."""
    context.require_one_process()
    file = _file(context)
    batch = load_batch(file, FileSystem())
    model, epoch = load_model(context)
    logger.log(RESULTS, "%s with epoch %d: %s", file, epoch, describe_batch(batch))
    for name, value in batch.tensors.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            rows = (~torch.isfinite(value)).flatten(1).any(1).nonzero().flatten().tolist()
            logger.log(RESULTS, "  input %s is not finite in %s", name, ", ".join(batch.seq_tags[row] for row in rows))
    model.train()
    step = context.step("train_step", model)
    for index in range(batch.num_seqs):
        losses = step(model, batch.select(index, index + 1).to(context.device))
        values = " ".join(f"{name} {float(loss.mean):.6g}" for name, loss in losses.items())
        logger.log(RESULTS, "  %s: %s", batch.seq_tags[index], values)
    for line in gradients(model, step(model, batch.to(context.device))):
        logger.log(RESULTS, "  %s", line)


def gradients(model: nn.Module, losses: dict) -> list[str]:
    """The norm of the gradient of every parameter, the bad ones first."""
    model.zero_grad()
    torch.stack([loss.scale * loss.mean for loss in losses.values() if not loss.as_error]).sum().backward()
    norms = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
    ordered = sorted(norms.items(), key=lambda item: (item[1] == item[1] and item[1] != float("inf"), -item[1]))
    return [f"gradient norm of {name}: {norm:.6g}" for name, norm in ordered]


def _file(context: Context) -> Path:
    if context.values["replay_file"] is not None:
        return Path(context.values["replay_file"])
    files = sorted((context.folder.path / FOLDER).glob("*.pt"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise ConfigError(f"replay_file: {context.folder.path / FOLDER} has no saved batch; name a file")
    return files[-1]
