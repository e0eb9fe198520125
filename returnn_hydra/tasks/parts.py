"""Parts that tasks are made of: the updater, the learning-rate control, callbacks, the run's store, a trained model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from returnn_hydra.build import check_arguments
from returnn_hydra.compat.dynamic_learning_rate import DynamicLearningRate
from returnn_hydra.compat.learning_rate_file import write_learning_rate_file
from returnn_hydra.config.compose import Composed
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.config.imports import without_collections
from returnn_hydra.config.run_name import NOT_IN_NAME
from returnn_hydra.config.schema import Config
from returnn_hydra.engine.callback import Callback
from returnn_hydra.engine.checkpoint import CheckpointStore
from returnn_hydra.engine.evaluator import TrainStep
from returnn_hydra.engine.init_params import InitFrom
from returnn_hydra.engine.load_parameters import load_parameters
from returnn_hydra.engine.other_run import OtherRun
from returnn_hydra.engine.parallel import ReplicatedStep, ShardedStep
from returnn_hydra.engine.retention import Retention
from returnn_hydra.engine.run_store import RunStore, read_records
from returnn_hydra.engine.signals import StopRequest
from returnn_hydra.engine.trainer import Trainer
from returnn_hydra.engine.updater import Updater, UpdateRules
from returnn_hydra.engine.weight_average import WeightAverage
from returnn_hydra.optim.gradients import GradientRules
from returnn_hydra.optim.learning_rate_control import LearningRateControl, choose_score
from returnn_hydra.optim.param_groups import freeze_parameters, param_groups
from returnn_hydra.tasks.context import Context

logger = logging.getLogger(__name__)
NOT_FINGERPRINTED = (NOT_IN_NAME - {"datasets", "model"}) | {"num_workers", "resume_from"}


def build_model(context: Context) -> nn.Module:
    """The model that is trained, with its frozen parameters; compiled, if asked for."""
    model = context.model()
    try:
        freeze_parameters(model, context.values["freeze"])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if context.values["compile"]:
        model.compile()
    return model


def build_train_step(context: Context, model: nn.Module) -> TrainStep:
    """The train step; of several ranks, inside what `distributed` says. The updater comes after it.

    Raises:
        ConfigError: something that does not go with `distributed`.
    """
    values, ranks = context.values, context.ranks
    step = context.step("train_step", model)
    if ranks.size > 1 and values["on_oom"] == "split":
        raise ConfigError("on_oom=split: only possible in one process; several ranks would make other numbers of steps")
    if values["distributed"] == "ddp":
        if values["fsdp_units"]:
            raise ConfigError("fsdp_units: only distributed=fsdp has them")
        return ReplicatedStep(model, step, context.device) if ranks.size > 1 else step
    if ranks.size == 1:
        raise ConfigError("distributed=fsdp: needs several processes: torchrun --nproc-per-node=N run.py ...")
    if values["ema"]["decay"] is not None:
        raise ConfigError("distributed=fsdp: ema.decay is only possible with distributed=ddp")
    try:
        return ShardedStep(model, step, context.device, ranks, values["fsdp_units"])
    except ValueError as error:
        raise ConfigError(str(error)) from error


def build_updater(context: Context, model: nn.Module) -> Updater:
    """The optimizer with its parameter groups, and the rules of an update."""
    values = context.values
    try:
        groups = param_groups(
            model,
            weight_decay=(values["optimizer"] or {}).get("weight_decay"),
            exclude=values["weight_decay_exclude"],
            learning_rate_multipliers=values["learning_rate_multipliers"],
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    with without_collections():
        optimizer = context.builder.build(values["optimizer"], "optimizer", params=groups, lr=values["learning_rate"])
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    rules = UpdateRules(
        normalization=values["loss_normalization"],
        grad_accum_steps=values["grad_accum_steps"],
        gradients=GradientRules(
            max_norm=values["max_grad_norm"],
            max_value=values["max_grad_value"],
            noise=values["gradient_noise"],
            max_norm_per_tensor=values["max_grad_norm_per_tensor"],
        ),
        amp=values["amp"],
        on_nonfinite=values["on_nonfinite"],
        max_consecutive_nonfinite=values["max_consecutive_nonfinite"],
    )
    return Updater(model, optimizer, rules, context.device, context.ranks, build_average(context, model))


def build_average(context: Context, model: nn.Module) -> WeightAverage | None:
    """The moving average of the parameters, if `ema.decay` is set."""
    decay = context.values["ema"]["decay"]
    if decay is None:
        return None
    if not 0 <= decay <= 1:
        raise ConfigError(f"ema.decay={decay}: expected a number from 0 to 1, or null")
    return WeightAverage(model, decay)


def build_control(context: Context) -> LearningRateControl:
    """How the learning rate follows the scores and the steps."""
    values = context.values
    node = values["learning_rate_control"]
    if values["dynamic_learning_rate"] is not None:
        if node.get("schedule") is not None:
            logger.info("dynamic_learning_rate takes the place of learning_rate_control.schedule")
        node = {**node, "schedule": DynamicLearningRate(values["dynamic_learning_rate"])}
    control = context.builder.build(
        node,
        "learning_rate_control",
        learning_rate=values["learning_rate"],
        score=values["score"],
    )
    if not isinstance(control, LearningRateControl):
        raise ConfigError(f"learning_rate_control: expected a LearningRateControl, got {type(control).__name__}")
    return control


def build_callbacks(context: Context) -> dict[str, Callback]:
    """The callbacks in the order of the configuration; an entry that is null is left out."""
    callbacks: dict[str, Callback] = {"config": SaveConfig(context)}
    for name, node in context.values["callbacks"].items():
        if node is not None:
            callback = context.builder.build(node, f"callbacks.{name}", folder=context.folder.path)
            if not isinstance(callback, Callback):
                raise ConfigError(f"callbacks.{name}: expected a Callback, got {type(callback).__name__}")
            callbacks[name] = callback
    return callbacks


class SaveConfig(Callback):
    """Saves the configuration into the run folder, once it is clear that the run goes on with it."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def on_run_start(self, trainer: Trainer) -> None:
        self.context.folder.save_config(self.context.config, self.context.overrides)


def open_store(context: Context) -> RunStore:
    """Checkpoints and scores of the run in the context's folder."""
    values = context.values
    try:
        stop = StopRequest(values["stop_after"])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return RunStore(
        context.folder.path,
        fingerprint=fingerprint(context.config, context.ranks.size),
        allow_changed=values["allow_changed"],
        retention=Retention(values["keep_last"], values["keep_best"], values["keep_epochs"]),
        score=values["score"],
        every_steps=values["checkpoint_every"]["steps"],
        every_minutes=values["checkpoint_every"]["minutes"],
        stop=stop,
        ranks=context.ranks,
        ask_every=values["log_every"],
        init_from=init_from(values["init_from"]),
        resume_from=None if values["resume_from"] is None else OtherRun(Path(values["resume_from"])),
        writers=[lambda folder, records: write_learning_rate_file(folder / "learning_rates", records)],
    )


def init_from(value: Any) -> list[InitFrom]:
    """`init_from`: a file, `{file: ..., prefix: ...}`, or a list of these.

    Raises:
        ConfigError: an unknown key, or no file.
    """
    entries = value if isinstance(value, list) else [] if value is None else [value]
    found = []
    for index, entry in enumerate(entries):
        options = {"file": entry} if isinstance(entry, str) else entry
        if not isinstance(options, dict):
            raise ConfigError(f"init_from[{index}]={entry!r}: expected a file, or keys such as file, prefix")
        check_arguments(InitFrom, options, f"init_from[{index}]")
        found.append(InitFrom(**options))
    return found


def fingerprint(config: Composed, world_size: int) -> dict[str, Any]:
    """What decides the numbers of a training, flat: `{"model.hidden_dim": 64, ...}`.

    Of the data sets only train and dev, on whose scores the learning rate may depend. `num_epochs` is not among it, so
    that a run can be made longer; what is computed from it counts by its formula.
    """
    written = _flat(OmegaConf.to_container(config.unresolved, resolve=False))
    flat = _flat(config.values)
    flat = {key: written[key] if "${num_epochs}" in str(written.get(key)) else value for key, value in flat.items()}
    reading = [f"datasets.{name}.{key}" for name in ("train", "dev") for key in ("num_workers", "prefetch")]
    ignored = ("datasets.eval", "datasets.extra", *reading)
    known = {
        key: value
        for key, value in flat.items()
        if key.split(".")[0] not in NOT_FINGERPRINTED and not key.startswith(ignored)
    }
    defaults = _flat(OmegaConf.to_container(OmegaConf.structured(Config)))  # a new key must not make old runs differ
    known = {key: value for key, value in known.items() if key not in defaults or value != defaults[key]}
    return {**known, "world_size": world_size}


def _flat(values: Any, path: str = "") -> dict[str, Any]:
    """Dotted keys to JSON values; a function by its name."""
    if isinstance(values, dict) and values:
        found: dict[str, Any] = {}
        for key, item in values.items():
            found.update(_flat(item, f"{path}.{key}" if path else str(key)))
        return found
    return {path: f"{values.__module__}.{values.__qualname__}" if callable(values) else values}


def load_model(context: Context) -> tuple[nn.Module, int]:
    """The model with the parameters of `load_epoch`, and the epoch's number.

    Raises:
        ConfigError: there is no such checkpoint.
        UsageError: its parameters don't fit the model.
    """
    folder = context.folder.path
    store = CheckpointStore(context.folder.checkpoints)
    epochs = store.epochs()
    if not epochs:
        there = sorted(
            path.parent.name for path in folder.parent.glob("*/checkpoints") if any(path.glob("model.[0-9]*.json"))
        )
        hint = f" (trained runs there: {', '.join(there[:8])})" if there else ""
        raise ConfigError(f"{folder}: no checkpoint of a finished epoch; train first, or say name= or run={hint}")
    epoch = epoch_to_load(folder, epochs, context.values["load_epoch"], context.values["score"])
    checkpoint = store.load(epoch, map_location=context.device)
    model = context.model()
    advice = f"run={folder} takes the configuration of that run"
    load_parameters(model, checkpoint.model, f"{folder} epoch {epoch}", advice)
    logger.info("Loaded epoch %d of %s", epoch, folder)
    return model, epoch


def epoch_to_load(folder: Path, epochs: list[int], wanted: int | str, score: str | None) -> int:
    """The epoch that `load_epoch` means in a run's folder.

    Raises:
        ConfigError: there is no such checkpoint.
    """
    if not epochs:
        raise ConfigError(f"{folder}: no checkpoint of a finished epoch")
    if wanted == "last":
        return epochs[-1]
    if wanted == "best":
        records = [record for record in read_records(folder) if record.epoch in epochs]
        if not records:
            raise ConfigError(f"load_epoch=best: {folder} has no scores of its checkpoints")
        name = choose_score(score, records[-1].means()) or ""
        return min(records, key=lambda record: (record.means()[name], record.epoch)).epoch
    if wanted not in epochs:
        raise ConfigError(f"load_epoch={wanted}: no such checkpoint (there is: {', '.join(map(str, epochs))})")
    return int(wanted)
