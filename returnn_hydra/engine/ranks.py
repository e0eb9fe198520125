"""The processes of one run: one, or several that torchrun started. Collective calls are no-ops in a single process.

Legend: W processes ("ranks"), each with its own batches.
"""

from __future__ import annotations

import datetime
import gc
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from returnn_hydra.batch import Batch, Loss
from returnn_hydra.engine.evaluator import TrainStep
from returnn_hydra.engine.scores import Score


@dataclass(frozen=True)
class Ranks:
    """This process among the others."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes of this machine: which GPU is ours."""

    @classmethod
    def start(cls, timeout_seconds: float) -> Ranks:
        """Join the process group that torchrun's environment describes; without one, a single process.

        Args:
            timeout_seconds: a collective call that waits longer for another rank is an error.
        """
        if not started_by_torchrun():
            return cls()
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_seconds))
        return cls(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))

    def leave(self) -> None:
        """End this process, with exit code 0, when all ranks are done.

        At once, without Python's tear-down: gloo's threads abort a process now and then that ends in the usual way, and
        a finished training must not look like a failed one.
        """
        if self.size > 1:
            dist.barrier()
            gc.collect()  # what holds on to the process group
            dist.destroy_process_group()
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    @property
    def is_first(self) -> bool:
        """This one writes files and log lines."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The element-wise sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, value: int) -> int:
        """The largest of the ranks' numbers."""
        if self.size == 1:
            return value
        found = torch.tensor([value])
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def broadcast(self, value: Any) -> Any:
        """The first rank's value; the others' is ignored."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def broadcast_buffers(self, model: nn.Module) -> None:
        """BatchNorm statistics and the like of the first rank for all: each rank's own saw its own batches."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def merge(self, scores: Mapping[str, Score]) -> dict[str, Score]:
        """Sums and counts over all ranks, added in the order of the ranks: the same bits everywhere."""
        if self.size == 1:
            return dict(scores)
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, {name: (score.sum, score.count) for name, score in scores.items()})
        merged: dict[str, Score] = {}
        for part in parts:
            for name, (total, count) in part.items():
                before = merged.get(name, Score(0.0, 0.0))
                merged[name] = Score(before.sum + total, before.count + count)
        return merged


def started_by_torchrun() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


class _StepModule(nn.Module):
    """A train step as a module's forward, so that any step runs inside DistributedDataParallel."""

    def __init__(self, model: nn.Module, train_step: TrainStep) -> None:
        super().__init__()
        self.model = model
        self.train_step = train_step

    def forward(self, batch: Batch) -> dict[str, Loss]:
        return dict(self.train_step(self.model, batch))


class DataParallelStep:
    """A train step whose gradients are averaged over the ranks while backward runs (DistributedDataParallel)."""

    def __init__(self, model: nn.Module, train_step: TrainStep, device: torch.device) -> None:
        devices = [device.index] if device.type == "cuda" else None
        self.module = nn.parallel.DistributedDataParallel(_StepModule(model, train_step), device_ids=devices)
        self.plain_step = train_step

    def __call__(self, model: nn.Module, batch: Batch) -> Mapping[str, Loss]:
        if not model.training:  # an evaluation: every rank has another number of batches
            return self.plain_step(model, batch)
        return self.module(batch)

    def without_sync(self) -> Any:
        """A context: backward inside only adds to this rank's gradients."""
        return self.module.no_sync()
