"""The processes of one run: one, or several that torchrun started. Collective calls are no-ops in a single process.

Legend: W processes ("ranks"), each with its own batches.
"""

from __future__ import annotations

import datetime
import gc
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from returnn_hydra.engine.rank_failures import meet, meeting_point, wait_for
from returnn_hydra.engine.scores import Score

TIMEOUT = "timeout"
Item = TypeVar("Item")
logger = logging.getLogger(__name__)


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
            timeout_seconds: a collective call that waits longer for another rank is an error. That of the first rank
                counts for all; the others wait so long for the first one to come.

        Raises:
            LostRankError: names the ranks that did not come.
        """
        if not started_by_torchrun():
            return cls()
        if not dist.is_initialized():
            _join(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), timeout_seconds)
        return cls(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))

    def leave(self) -> None:
        """End this process, with exit code 0, when all ranks are done."""
        if self.size > 1:
            dist.barrier()
            gc.collect()  # what holds on to the process group
            dist.destroy_process_group()
            end_at_once(0)

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

    def smallest(self, value: int) -> int:
        """The smallest of the ranks' numbers."""
        return -self.largest(-value)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of the ranks, on all of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

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
            kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
            for buffer in model.buffers():
                kinds.setdefault((buffer.device, buffer.dtype), []).append(buffer)
            for buffers in kinds.values():
                together = torch.cat([buffer.detach().reshape(-1) for buffer in buffers])
                dist.broadcast(together, src=0)
                parts = together.split([buffer.numel() for buffer in buffers])
                for buffer, part in zip(buffers, parts, strict=True):
                    buffer.detach().copy_(part.view_as(buffer))

    def while_all_have(self, batches: Iterator[Item]) -> Iterator[Item]:
        """Batches until the first rank runs out of them: a step needs one on every rank.

        For sources that don't know how many there are; a rank that has one left over tells so in its log.
        """
        while True:
            batch = next(batches, None)
            if self.smallest(0 if batch is None else 1) == 0:
                if batch is not None:
                    logger.warning("rank %d: left out its last batches, another rank has no more", self.rank)
                return
            assert batch is not None
            yield batch

    def merge(self, scores: Mapping[str, Score]) -> dict[str, Score]:
        """Sums and counts over all ranks, added in the order of the ranks: the same bits everywhere."""
        if self.size == 1:
            return dict(scores)
        merged: dict[str, Score] = {}
        for part in self.gather({name: (score.sum, score.count) for name, score in scores.items()}):
            for name, (total, count) in part.items():
                before = merged.get(name, Score(0.0, 0.0))
                merged[name] = Score(before.sum + total, before.count + count)
        return merged


def started_by_torchrun() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def end_at_once(code: int) -> NoReturn:
    """End this process without Python's tear-down.

    gloo's threads abort a process now and then that ends in the usual way, and a finished training must not look like a
    failed one; a failed one must not wait for the others.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _join(rank: int, size: int, timeout_seconds: float) -> None:
    store = meeting_point()
    if rank == 0:
        store.set(TIMEOUT, str(timeout_seconds))
    meet(store, rank, size, timeout_seconds)
    wait_for([TIMEOUT], store, timeout_seconds)
    timeout = datetime.timedelta(seconds=float(store.get(TIMEOUT)))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    group = dist.PrefixStore("group", store)
    dist.init_process_group(backend, timeout=timeout, world_size=size, rank=rank, store=group)
