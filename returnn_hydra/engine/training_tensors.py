"""The tensors of a training as a checkpoint has them: what `model.NNN.pt` and `model.NNN.opt.pt` hold, and back.

`.pt` has the parameters that are evaluated and forwarded. `.opt.pt` has, in RETURNN's layout, what only a training
needs: the optimizer's state, and, with a moving average of the parameters, those that are being trained.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from returnn_hydra.engine.checkpoint import Checkpoint
from returnn_hydra.engine.errors import ChangedConfigError
from returnn_hydra.engine.updater import Updater
from returnn_hydra.engine.whole_state import load_model_state, load_optimizer_state, model_state, optimizer_state

TRAINED = "trained_parameters"
logger = logging.getLogger(__name__)


def training_tensors(model: nn.Module, updater: Updater) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """(content of `.pt` under "model", content of `.opt.pt`)."""
    optimizer = updater.optimizer
    content: dict[str, Any] = {
        "optimizer": optimizer_state(model, optimizer),
        "optimizer_class_name": type(optimizer).__name__,
        "optimizer_opts": {},
        "param_names": parameter_names(optimizer, model),
    }
    if updater.average is None:
        return model_state(model), content
    return updater.average.model_state(), {**content, TRAINED: updater.average.trained_parameters()}


def load_training_tensors(model: nn.Module, updater: Updater, checkpoint: Checkpoint) -> None:
    """The parameters, their average and the optimizer's state.

    Raises:
        ChangedConfigError: the parameters are not those of this model.
    """
    try:
        load_model_state(model, checkpoint.model)
        content = checkpoint.optimizer or {}
        if updater.average is not None:
            updater.average.load(content.get(TRAINED, {}))
        elif TRAINED in content:
            model.load_state_dict({**checkpoint.model, **content[TRAINED]})
    except (RuntimeError, KeyError) as error:
        raise ChangedConfigError(
            f"the parameters of {checkpoint.manifest.name} don't fit `model`: {' '.join(str(error).split())}; "
            "init_from takes what fits into a new run"
        ) from error
    if content:
        load_optimizer(updater.optimizer, model, content)


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, content: Mapping[str, Any]) -> None:
    """Take up what was saved: the state of every parameter by its name.

    The options of the groups (weight decay, momentum, ...) stay those of this optimizer: they follow from the
    configuration, whose changes are refused, or allowed and then meant. Only the learning rate is that of the last
    step: the next step sets it anew, but there may be none before the next save. A parameter that the saved optimizer
    did not have starts anew, and so does everything when it was of another class; both are told.
    """
    if content["optimizer_class_name"] != type(optimizer).__name__:
        words = "The optimizer was %s and is %s: its state starts anew"
        logger.warning(words, content["optimizer_class_name"], type(optimizer).__name__)
        return
    saved = content["optimizer"]["state"]
    number = {name: index for index, name in enumerate(content["param_names"])}
    names = parameter_names(optimizer, model)
    if missing := [name for name in names if name not in number]:
        logger.warning("The optimizer's state of %s starts anew", ", ".join(missing))
    state = {index: saved[number[name]] for index, name in enumerate(names) if number.get(name) in saved}
    load_optimizer_state(optimizer, {"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for group, saved_group in zip(optimizer.param_groups, content["optimizer"]["param_groups"], strict=False):
        group["lr"] = saved_group["lr"]


def parameter_names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """In the order of the groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
