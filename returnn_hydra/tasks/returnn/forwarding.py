"""task=forward on a config with functions: `forward_step` and `forward_callback`, or MiniReturnn's hooks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from returnn_hydra.batch import Batch
from returnn_hydra.compat.shim.engine_face import EngineFace
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.engine.forwarder import forward
from returnn_hydra.frontend.steps import ForwardCallbackAdapter, HookCallback
from returnn_hydra.tasks.returnn.datasets import dataset_value, forward_batches
from returnn_hydra.tasks.returnn.precision import autocast
from returnn_hydra.tasks.returnn.session import Session
from returnn_hydra.tasks.returnn.start import Start, evaluation_start, load_parameters
from returnn_hydra.tasks.returnn.user_functions import UserFunctions

logger = logging.getLogger(__name__)


def loaded_model(session: Session, recipe: Any) -> tuple[nn.Module, Start]:
    """The model with the parameters that the config names, for every task but train."""
    start = evaluation_start(session)
    model = recipe.model(start.model_epoch, start.step)
    load_parameters(session, model, start, training=False)
    return model, start


def named_data(session: Session, *keys: str) -> tuple[str, Any]:
    """The data set of `forward_data` or the like: (its name, its value); a text names train, dev or eval."""
    for key in keys:
        value = session.values.get(key)
        if value is None:
            continue
        if isinstance(value, str) and not value.strip().startswith("{"):
            return value, dataset_value(session, value)
        return key, value
    try:
        return "eval", dataset_value(session, "eval")
    except ConfigError as error:
        raise ConfigError(f"{keys[0]}: set it to a data set, or to the name of one; {error}") from error


def forward_task(session: Session, recipe: UserFunctions, kind: str = "forward") -> int:
    """Forward the data through the model; returns the number of sequences.

    Args:
        kind: forward, search or prior: which of MiniReturnn's functions (`prior_step`, `prior_finish_hook`) are used.
    """
    name, value = named_data(session, f"{kind}_data", "forward_data")
    model, start = loaded_model(session, recipe)
    values = session.values
    function = f"{kind}_step" if callable(values.get(f"{kind}_step")) else "forward_step"
    hooks = [values.get(f"{kind}_{part}_hook") for part in ("init", "finish")]
    callback: Any
    if any(hooks) or values.get("forward_callback") is None:
        if not any(hooks):
            raise ConfigError(
                f"forward_callback: task={values.get('task')} needs one (or {kind}_init_hook and the like)"
            )
        engine = EngineFace(
            session.config, lambda _: value, is_training=False, epoch=start.epoch, device=str(session.device)
        )
        callback = HookCallback(hooks[0], hooks[1], epoch=start.epoch, engine=engine)
        step = recipe.forward_step(start.epoch, start.step, function, callback.run_ctx)
    else:
        callback = _callback(values["forward_callback"])
        step = recipe.forward_step(start.epoch, start.step, function)
    specs = {key: spec for key, spec in recipe.specs.items() if spec.available_for_inference}
    order = "longest" if values.get("sort_dataset", True) else "own"
    batches = forward_batches(session, name, value, specs, start.epoch, order)

    def run_step(model: nn.Module, batch: Batch) -> Mapping[str, Any]:
        with autocast(session):
            return step(model, batch)

    count = forward(model, run_step, batches, callback, session.device, {})
    logger.info("Forwarded %d sequences of '%s'", count, name)
    return count


def _callback(value: Any) -> ForwardCallbackAdapter:
    try:
        return ForwardCallbackAdapter(value)
    except TypeError as error:
        raise ConfigError(str(error)) from error
