"""forward, compute_priors and search on a network dict, with the files of RETURNN's TensorFlow engine."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from returnn_hydra.callbacks.hdf import HDF
from returnn_hydra.callbacks.priors import Priors
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.engine.callback import ForwardCallback
from returnn_hydra.engine.forwarder import ForwardStep, forward
from returnn_hydra.tasks.returnn.datasets import forward_batches
from returnn_hydra.tasks.returnn.forwarding import loaded_model, named_data
from returnn_hydra.tasks.returnn.network_dict import NetworkDict
from returnn_hydra.tasks.returnn.session import Session

logger = logging.getLogger(__name__)


def network_forward(session: Session, recipe: NetworkDict) -> int:
    """Write a layer's output for every sequence of `forward_data` (default eval) as HDF."""
    values = session.values
    name, value = named_data(session, "forward_data")
    model, start = loaded_model(session, recipe)
    file = values.get("output_file") or f"dump-fwd-epoch-{start.epoch}.hdf"
    if Path(file).exists():
        if not values.get("forward_override_hdf_output"):
            raise ConfigError(f"output_file={file}: the file exists; forward_override_hdf_output=True replaces it")
        Path(file).unlink()
    callback = HDF(Path(file).parent, name, {}, file=file)
    step = recipe.forward_step(start.epoch, start.step)
    return _forward(session, recipe, name, value, start.epoch, model, step, callback)


def network_priors(session: Session, recipe: NetworkDict) -> int:
    """The log of the mean posteriors over the training data (of epoch 1, as in RETURNN), as text."""
    file = session.values.get("output_file")
    if not file:
        raise ConfigError("output_file: task=compute_priors needs it")
    if not session.values.get("train"):
        raise ConfigError("train: task=compute_priors needs the training data")
    model, start = loaded_model(session, recipe)
    step = recipe.forward_step(start.epoch, start.step)
    return _forward(
        session, recipe, "train", session.values["train"], 1, model, step, Priors(Path(), "train", file=file)
    )


def _forward(
    session: Session,
    recipe: NetworkDict,
    name: str,
    value: Any,
    epoch: int,
    model: nn.Module,
    step: ForwardStep,
    callback: ForwardCallback,
) -> int:
    """All sequences in the data set's own order; returns their number."""
    specs = {key: spec for key, spec in recipe.specs.items() if spec.available_for_inference}
    batches = forward_batches(session, name, value, specs, epoch, sort=False)
    count = forward(model, step, batches, callback, session.device, {})
    logger.info("Forwarded %d sequences of '%s'", count, name)
    return count


def network_search(session: Session, recipe: NetworkDict) -> int:
    raise ConfigError("task=search: not supported for network dicts; use task=forward with a 'decide' layer")
