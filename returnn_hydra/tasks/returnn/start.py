"""Where a training begins: at random, from a file, or after an epoch; and which parameters the other tasks load."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from returnn_hydra.compat.checkpoint_select import Selection, existing_epochs, select_checkpoint
from returnn_hydra.config.errors import ConfigError, listed, nearest
from returnn_hydra.engine.checkpoint import CheckpointStore
from returnn_hydra.engine.files import FileSystem
from returnn_hydra.engine.foreign import ModelFile, load_model_file
from returnn_hydra.engine.manifest import Progress
from returnn_hydra.engine.tensor_file import read_foreign_tensors
from returnn_hydra.frontend.steps import call_with_wanted, user_model
from returnn_hydra.tasks.returnn.preload import load_parts, preload
from returnn_hydra.tasks.returnn.session import Session

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """The state that a training begins with."""

    epoch: int = 1
    """The epoch to train first."""
    step: int = 0
    model_epoch: int = 1
    """What `get_model` is told."""
    file: ModelFile | None = None
    """Parameters that are loaded; None: random ones, or those of `resume`."""
    optimizer: dict[str, Any] | None = None
    """Content of the `.opt.pt` file that is loaded."""
    resume: bool = False
    """The run's own newest checkpoint, maybe inside of an epoch, is loaded by the run's store."""


def training_start(session: Session) -> Start:
    """By the rules of RETURNN (compat/checkpoint_select.py).

    Raises:
        ConfigError: a file or epoch that is asked for does not exist.
    """
    selection = select_checkpoint({**session.values, "task": "train"})
    newest = _own_progress(session, selection)
    if newest is not None:
        return Start(selection.start_epoch, newest.step, selection.start_epoch, resume=True)
    if selection.file is None:
        return Start()
    file = load_model_file(Path(selection.file), FileSystem(), session.device)
    if not selection.with_optimizer:
        logger.info("Starting with the parameters of %s", file.path)
        imported = selection.epoch is None or session.values.get("import_model_train_epoch1") is not None
        return Start(selection.start_epoch, file.step or 0, 0 if imported else selection.start_epoch, file)
    optimizer = _optimizer_of(session, file)
    logger.info("Going on after %s", file.path)
    return Start(selection.start_epoch, file.step or 0, selection.start_epoch, file, optimizer)


def _own_progress(session: Session, selection: Selection) -> Progress | None:
    """The run's newest state, if it was saved here, and is what to go on from."""
    prefix = session.prefix
    if prefix is None or session.values.get("start_epoch", "auto") not in ("auto", None):
        return None
    saved = next(iter(CheckpointStore(prefix.parent, prefix=prefix.name).manifests()), None)
    newest = max(selection.existing, default=0)
    return saved.progress if saved is not None and saved.progress.epoch >= newest else None


def _optimizer_of(session: Session, file: ModelFile) -> dict[str, Any]:
    """The optimizer beside the model's file, or under the config's own prefix.

    Raises:
        ConfigError: it is at neither place.
    """
    places = [file.path.with_suffix(".opt.pt")]
    if session.prefix is not None and file.epoch is not None:
        places.append(session.prefix.with_name(f"{session.prefix.name}.{file.epoch:03d}.opt.pt"))
    for place in places:
        if place.is_file():
            return read_foreign_tensors(FileSystem(), place, session.device)
    raise ConfigError(
        f"load={file.path}: going on after epoch {file.epoch} needs its optimizer, which is not at "
        f"{' nor at '.join(map(str, places))}; import_model_train_epoch1 starts with the parameters alone"
    )


def evaluation_start(session: Session) -> Start:
    """What forward, search and evaluations load; nothing, if the config names nothing to load."""
    values = session.values
    asked = any(values.get(key) for key in ("load", "load_epoch", "epoch"))
    allowed = not values.get("model") or values.get("preload_from_files") or values.get("allow_random_model_init")
    if not asked and allowed and not existing_epochs(values.get("model"), with_optimizer=False):
        logger.warning("There is no checkpoint: the model is as it is made, and as preload_from_files says")
        return Start()
    selection = select_checkpoint({**values, "task": values.get("task", "train").replace("train", "eval")})
    assert selection.file is not None
    file = load_model_file(Path(selection.file), FileSystem(), session.device)
    logger.info("Load model %s", file.path)
    wanted = values.get("load_epoch") or values.get("epoch")
    epoch = wanted or file.epoch or selection.epoch or 1
    return Start(epoch, file.step or 0, epoch, file)


def load_parameters(session: Session, model: nn.Module, start: Start, training: bool) -> None:
    """Parameters of the start's file and of `preload_from_files` into the model.

    Raises:
        ConfigError: one is missing, or has another shape.
    """
    state = start.file.model if start.file is not None else {}
    missing = load_state(model, state, str(start.file.path)) if start.file is not None else []
    loaded = set() if start.resume else load_parts(model, state)
    options = session.values.get("preload_from_files") or {}
    from_scratch = start.file is None and not start.resume and start.epoch == 1
    loaded |= preload(model, options, training=training, from_scratch=from_scratch)
    missing = [name for name in missing if name not in loaded]
    if missing and not session.values.get("load_ignore_missing_vars"):
        unused = [name for name in state if name not in model.state_dict()]
        raise ConfigError(
            f"{start.file.path if start.file else ''}: the model's parameters {listed(missing)} are missing"
            f"{nearest(missing[0], unused)} (it has besides: {listed(unused)})"
        )
    for hook in session.values.get("load_model_post_hooks") or []:
        call_with_wanted(hook, {"model": user_model(model)})


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor], where: str) -> list[str]:
    """Load by name; what the model doesn't have is only told. Returns the parameters that the file lacks.

    Raises:
        ConfigError: a parameter has another shape.
    """
    own = model.state_dict()
    unused = [name for name in state if name not in own]
    if unused:
        logger.warning("%s: not in the model: %s", where, listed(unused))
    for name, value in own.items():
        if name in state and state[name].shape != value.shape:
            raise ConfigError(f"{where}: {name} has shape {tuple(state[name].shape)}, the model {tuple(value.shape)}")
    model.load_state_dict({name: state[name] for name in own if name in state}, strict=False)
    return [name for name in own if name not in state]


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], name_of: Callable[[Any], str]) -> None:
    """The state of a RETURNN `.opt.pt`, put in the order of this optimizer's parameters.

    Raises:
        ConfigError: other parameters or groups than those of the file.
    """
    names = [name_of(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    content = saved["optimizer"]
    theirs = list(saved.get("param_names") or names)
    if sorted(theirs) != sorted(names) or len(content["param_groups"]) != len(optimizer.param_groups):
        different = sorted(set(theirs) ^ set(names))
        raise ConfigError(
            f"the saved optimizer has other parameters or groups than this one: {listed(different) or 'groups differ'}"
        )
    index = {name: position for position, name in enumerate(theirs)}
    state = {new: content["state"][index[name]] for new, name in enumerate(names) if index[name] in content["state"]}
    groups = optimizer.state_dict()["param_groups"]
    kept = [
        {**ours, **{key: value for key, value in old.items() if key != "params"}}
        for ours, old in zip(groups, content["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": kept})
