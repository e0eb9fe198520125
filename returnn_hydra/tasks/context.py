"""What every task gets: the checked configuration, the builder, the run folder, and parts that several tasks build."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn

from returnn_hydra.batch import TensorSpec
from returnn_hydra.build import Builder
from returnn_hydra.config.compose import Composed
from returnn_hydra.config.errors import ConfigError, nearest
from returnn_hydra.data.loader import Loader
from returnn_hydra.data.stream_loader import StreamLoader
from returnn_hydra.engine.device import seed_everything, select_device
from returnn_hydra.engine.files import explain_write
from returnn_hydra.engine.lock import RunLock
from returnn_hydra.engine.log import RunLog
from returnn_hydra.engine.ranks import Ranks
from returnn_hydra.engine.status import StatusFile
from returnn_hydra.tasks.data import build_loader, build_specs
from returnn_hydra.tasks.run_folder import RunFolder
from returnn_hydra.usage import UsageError

RUNTIME_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "task": ("context",),
    "model": ("extern_data",),
    "train_step": ("extern_data",),
    "forward_step": ("extern_data",),
    "forward_callback": ("folder", "data_name", "model_outputs"),
    "search": ("extern_data",),
    "search_output": ("folder", "data_name", "vocab"),
    "learning_rate_control": ("learning_rate", "score"),
    "optimizer": ("params", "lr"),
}
"""What the program adds to the arguments of a node, if the target takes it."""


@dataclass
class Context:
    """The surroundings of one task; a context manager that holds the log open."""

    config: Composed
    values: Mapping[str, Any]
    folder: RunFolder
    builder: Builder
    device: torch.device
    extern_data: dict[str, TensorSpec]
    overrides: list[str]
    ranks: Ranks = Ranks()
    log: RunLog | None = None

    @classmethod
    def create(
        cls, config: Composed, folder: RunFolder, builder: Builder, overrides: list[str], ranks: Ranks
    ) -> Context:
        """Check what can be checked before anything is built.

        Raises:
            ConfigError: a node that can't be built, a device that is not there.
        """
        values = config.values
        for key, given in RUNTIME_ARGUMENTS.items():
            builder.check(values[key], key, given)
        for name, node in values["callbacks"].items():
            builder.check(node, f"callbacks.{name}", ["folder"])
        for name, conf in {**values["datasets"], **values["datasets"]["extra"]}.items():
            if name != "extra" and conf is not None:
                builder.check(conf["source"], f"datasets.{name}.source")
        try:
            device = select_device(values["device"], ranks.local_rank if ranks.size > 1 else None)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if values["num_threads"]:
            torch.set_num_threads(values["num_threads"])
        extern_data = build_specs(builder, values["extern_data"], "extern_data")
        return cls(config, values, folder, builder, device, extern_data, overrides, ranks)

    def __enter__(self) -> Context:
        path, disk = self.folder.path, self.folder.disk
        with explain_write(disk, path, 0):
            path.mkdir(parents=True, exist_ok=True)
        first = self.ranks.is_first
        file = self.folder.log_file if first else path / f"run.rank{self.ranks.rank}.log"
        with explain_write(disk, file, 0):
            self.log = RunLog(self.values["log_verbosity"], file, terminal=first)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self.log is not None
        path = self.folder.log_file
        with contextlib.suppress(OSError) if error else explain_write(self.folder.disk, path, 0):
            self.log.close()

    def lock(self) -> contextlib.AbstractContextManager[Any]:
        """The run folder's lock, held by the first rank."""
        if not self.ranks.is_first:
            return contextlib.nullcontext()
        return RunLock(self.folder.path, steal=self.values["steal_lock"])

    def status(self) -> contextlib.AbstractContextManager[StatusFile | None]:
        """The run folder's status.json, kept by the first rank while it holds the lock."""
        return StatusFile(self.folder.path, self.folder.disk) if self.ranks.is_first else contextlib.nullcontext()

    def require_one_process(self) -> None:
        """For tasks that write one output in corpus order.

        Raises:
            ConfigError: several ranks were started.
        """
        if self.ranks.size > 1:
            raise ConfigError(
                f"this task runs in one process, and torchrun started {self.ranks.size}: start it without torchrun "
                "(task=train and task=evaluate can use several)"
            )

    def loader(self, name: str, conf: dict[str, Any], equal_batches: bool = False) -> Loader | StreamLoader:
        """A data set with its order and batches, this rank's part of them.

        Args:
            equal_batches: every rank gets the same number, as training needs.
        """
        return build_loader(
            self.builder,
            conf,
            f"datasets.{name}",
            self.extern_data,
            self.values["seed"],
            rank=self.ranks.rank,
            world_size=self.ranks.size,
            equal_batches=equal_batches,
            pin_memory=self.device.type == "cuda",
        )

    def model(self) -> nn.Module:
        """The model with its first parameters, on the device; the same for the same seed."""
        seed_everything(self.device, self.values["seed"])
        model = self.builder.make(self.values["model"], "model", extern_data=self.extern_data)
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model: expected a torch.nn.Module, {self.values['model']} gave {type(model).__name__}")
        return model.to(self.device)

    def step(self, key: str, model: nn.Module) -> Any:
        """The train_step or forward_step.

        Raises:
            UsageError: one with a `check_model` says that it can't use the model.
        """
        node = self.values[key]
        if node is None:
            raise ConfigError(f"{key}: this task needs one")
        step = self.builder.build(node, key, extern_data=self.extern_data)
        check_model(step, model, key)
        return step

    def dataset_conf(self, name: str, key: str) -> dict[str, Any]:
        """The node of a data set by its name: train, dev, eval, or one of `datasets.extra`.

        Raises:
            ConfigError: no such data set.
        """
        named = dict(self.dataset_confs())
        if name not in named:
            raise ConfigError(f"{key}={name}: no such data set{nearest(name, named)} (there is: {', '.join(named)})")
        return named[name]

    def dataset_confs(self) -> dict[str, dict[str, Any]]:
        """Every configured data set by its name, in the order train, dev, eval, extra."""
        datasets = self.values["datasets"]
        named = {name: datasets[name] for name in ("train", "dev", "eval") if datasets[name] is not None}
        return {**named, **datasets["extra"]}


def check_model(step: Any, model: nn.Module, key: str) -> None:
    """Ask a step or a search, if it can tell, whether it can use the model.

    Raises:
        UsageError: it can't; `key` is where it stands in the configuration.
    """
    check = getattr(step, "check_model", None)
    if check is not None:
        try:
            check(model)
        except UsageError as error:
            raise UsageError(f"{key}: {error}") from error
