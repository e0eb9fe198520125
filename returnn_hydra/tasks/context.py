"""What every task gets: the checked configuration, the builder, the run folder, and parts that several tasks build."""

from __future__ import annotations

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
from returnn_hydra.engine.device import seed_everything, select_device
from returnn_hydra.engine.log import RunLog
from returnn_hydra.tasks.data import build_specs
from returnn_hydra.tasks.run_folder import RunFolder

RUNTIME_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "task": ("context",),
    "model": (),
    "train_step": ("extern_data",),
    "forward_step": ("extern_data",),
    "forward_callback": ("folder", "data_name", "model_outputs"),
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
    log: RunLog | None = None

    @classmethod
    def create(cls, config: Composed, folder: RunFolder, builder: Builder, overrides: list[str]) -> Context:
        """Check what can be checked before anything is built.

        Raises:
            ConfigError: a node that can't be built, a device that is not there.
        """
        values = {**config.values, **config.callables}
        for key, given in RUNTIME_ARGUMENTS.items():
            builder.check(values[key], key, given)
        for name, node in values["callbacks"].items():
            builder.check(node, f"callbacks.{name}", ["folder"])
        try:
            device = select_device(values["device"])
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if values["num_threads"]:
            torch.set_num_threads(values["num_threads"])
        extern_data = build_specs(builder, values["extern_data"], "extern_data")
        return cls(config, values, folder, builder, device, extern_data, overrides)

    def __enter__(self) -> Context:
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self.log = RunLog(self.values["log_verbosity"], self.folder.log_file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self.log is not None
        self.log.close()

    def model(self) -> nn.Module:
        """The model with its first parameters, on the device; the same for the same seed."""
        seed_everything(self.device, self.values["seed"])
        model = self.builder.build(self.values["model"], "model")
        if not isinstance(model, nn.Module):
            raise ConfigError(f"model: expected a torch.nn.Module, {self.values['model']} gave {type(model).__name__}")
        return model.to(self.device)

    def step(self, key: str) -> Any:
        """The train_step or forward_step."""
        node = self.values[key]
        if node is None:
            raise ConfigError(f"{key}: this task needs one")
        return self.builder.build(node, key, extern_data=self.extern_data)

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
