"""Train steps of several ranks: each with the whole model (DistributedDataParallel), or with a part (FSDP2)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from returnn_hydra.batch import Batch, Loss
from returnn_hydra.engine.evaluator import TrainStep
from returnn_hydra.engine.ranks import Ranks


class _StepModule(nn.Module):
    """A train step as a module's forward, so that any step runs inside a wrapper of torch."""

    def __init__(self, model: nn.Module, train_step: TrainStep) -> None:
        super().__init__()
        self.model = model
        self.train_step = train_step

    def forward(self, batch: Batch) -> dict[str, Loss]:
        return dict(self.train_step(self.model, batch))


class ParallelStep:
    """A train step whose gradients are averaged over the ranks while backward runs."""

    def __call__(self, model: nn.Module, batch: Batch) -> Mapping[str, Loss]:
        raise NotImplementedError

    def without_sync(self) -> contextlib.AbstractContextManager[None]:
        """A context: the gradients of a backward inside need not be averaged before the next backward outside."""
        raise NotImplementedError

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        """A context for evaluations, where every rank has another number of batches."""
        raise NotImplementedError


class ReplicatedStep(ParallelStep):
    """Every rank has the whole model: DistributedDataParallel."""

    def __init__(self, model: nn.Module, train_step: TrainStep, device: torch.device) -> None:
        devices = [device.index] if device.type == "cuda" else None
        self.module = nn.parallel.DistributedDataParallel(_StepModule(model, train_step), device_ids=devices)
        self.plain_step = train_step

    def __call__(self, model: nn.Module, batch: Batch) -> Mapping[str, Loss]:
        return self.module(batch) if model.training else self.plain_step(model, batch)

    def without_sync(self) -> contextlib.AbstractContextManager[None]:
        return self.module.no_sync()

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class ShardedStep(ParallelStep):
    """Every rank has a part of each parameter, of its gradient and of the optimizer's state: fully_shard (FSDP2).

    The parameters are put together for a step, those of the modules in `units` only while such a module works: it must
    be called equally often on all ranks in every step. An evaluation needs the whole parameters on every rank.

    Make the optimizer afterwards: the model's parameters are replaced by sharded ones (DTensor).
    """

    def __init__(
        self, model: nn.Module, train_step: TrainStep, device: torch.device, ranks: Ranks, units: Sequence[str] = ()
    ) -> None:
        """
        Args:
            units: globs over names of the model's modules (`encoder.layers.*`) that are put together one by one.

        Raises:
            ValueError: a glob that matches nothing, or a unit that shares a parameter with the rest.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard  # they take a second to import

        mesh = init_device_mesh(device.type, (ranks.size,))
        for unit in _units(model, units):
            fully_shard(unit, mesh=mesh)
        self.module = _StepModule(model, train_step)
        fully_shard(self.module, mesh=mesh)
        self.ranks = ranks
        self._sharded = [module for module in self.module.modules() if isinstance(module, FSDPModule)]

    def __call__(self, model: nn.Module, batch: Batch) -> Mapping[str, Loss]:
        if model.training:
            self.ranks.broadcast_buffers(model)  # as DistributedDataParallel does
        return self.module(batch)

    def without_sync(self) -> contextlib.AbstractContextManager[None]:
        """Gradients are averaged all the same: without that, every rank would have to keep whole ones."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        self._keep_whole(True)
        try:
            for module in self._sharded:
                module.unshard()
            yield
        finally:
            for module in self._sharded:
                module.reshard()
            self._keep_whole(False)

    def _keep_whole(self, keep: bool) -> None:
        """After a module's forward. The outermost one is needed for backward at once, and is kept anyway."""
        for module in self._sharded:
            module.set_reshard_after_forward(not keep and module is not self.module, recurse=False)


def _units(model: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    modules = {name: module for name, module in model.named_modules() if name}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in modules):
            raise ValueError(
                f"fsdp_units: {pattern!r} matches no module (there is: {', '.join(list(modules)[:8])}, ...)"
            )
    units = {name: module for name, module in modules.items() if any(fnmatchcase(name, p) for p in patterns)}
    for name, module in units.items():
        inside = {id(parameter) for parameter in module.parameters()}
        members = set(module.modules())
        for other_name, other in modules.items():
            if other not in members and any(id(p) in inside for p in other.parameters(recurse=False)):
                raise ValueError(f"fsdp_units: '{name}' shares a parameter with '{other_name}': it can't be a unit")
    return list(reversed(units.values()))  # inner ones first
