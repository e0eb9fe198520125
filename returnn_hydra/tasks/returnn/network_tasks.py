"""forward, compute_priors and search on a network dict, with the files of RETURNN's TensorFlow engine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from returnn_hydra.batch import Batch, Output
from returnn_hydra.callbacks.hdf import HDF
from returnn_hydra.callbacks.priors import Priors
from returnn_hydra.callbacks.search_output import SearchOutput
from returnn_hydra.config.errors import ConfigError, nearest
from returnn_hydra.engine.callback import ForwardCallback
from returnn_hydra.engine.forwarder import ForwardStep, forward
from returnn_hydra.engine.log import RESULTS
from returnn_hydra.network.describe import as_text, draw, layer_infos
from returnn_hydra.network.model import NetworkModel
from returnn_hydra.network.steps import hypotheses_of
from returnn_hydra.search.result import Hypothesis, pack
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
    order: str = "own",
) -> int:
    """All sequences; returns their number."""
    specs = {key: spec for key, spec in recipe.specs.items() if spec.available_for_inference}
    batches = forward_batches(session, name, value, specs, epoch, order)
    count = forward(model, step, batches, callback, session.device, {})
    logger.info("Forwarded %d sequences of '%s'", count, name)
    return count


def network_inspect(session: Session, recipe: NetworkDict) -> int:
    """Print the layers of the network of the first epoch (or `load_epoch`), and draw them; returns their number.

    The picture is network.svg beside the checkpoints, or `output_file` (.svg, .png, .pdf).
    """
    model = recipe.model(session.values.get("load_epoch") or 1, 0)
    assert isinstance(model, NetworkModel)
    infos = layer_infos(model)
    for line in as_text(infos).splitlines():
        logger.log(RESULTS, line)
    default = (session.prefix.parent if session.prefix is not None else Path()) / "network.svg"
    file = Path(session.values.get("output_file") or default)
    file.parent.mkdir(parents=True, exist_ok=True)
    draw(infos, file)
    logger.log(RESULTS, "Picture of the network: %s", file)
    return len(infos)


def network_search(session: Session, recipe: NetworkDict) -> int:
    """Search `search_data` (default eval) and write `search_output_file`, in corpus order; returns the number."""
    values = session.values
    layer = values.get("search_output_layer") or "output"
    if not isinstance(layer, str):
        raise ConfigError(f"search_output_layer={layer!r}: several layers are not supported; run the task for each")
    file, file_format = values.get("search_output_file"), values.get("search_output_file_format", "txt")
    if not file:
        raise ConfigError("search_output_file: task=search needs it")
    if Path(file).exists():
        raise ConfigError(f"search_output_file={file}: the file exists")
    name, value = named_data(session, "search_data", "forward_data")
    model, start = loaded_model(session, recipe)
    assert isinstance(model, NetworkModel)
    options = model.net.layers.get(layer)
    if options is None:
        raise ConfigError(f"search_output_layer={layer}: no such layer{nearest(layer, model.net.layers)}")
    target = recipe.specs.get(str(options.get("target") or model.user["target"]))
    try:
        output = SearchOutput(
            Path(file).parent,
            name,
            target.vocab if target is not None else None,
            formats=(file_format,),
            file=file,
            num_best=options["class"] != "decide" and _has_choice(model.net.layers),
        )
    except ValueError as error:
        raise ConfigError(f"search_output_file_format: {error}") from error

    def step(model: Any, batch: Batch) -> dict[str, Output]:
        result = model(batch, search=True, with_losses=False, layers=[layer])
        recipe.dumps.add(result.dumps, batch.seq_tags)
        found = hypotheses_of(result, layer)
        return pack([[Hypothesis(hyp.labels, hyp.score) for hyp in hypotheses] for hypotheses in found])

    return _forward(session, recipe, name, value, start.epoch, model, step, output, order="corpus")


def _has_choice(layers: Any) -> bool:
    """Whether there is a search in the network, or in one inside of it."""
    if not isinstance(layers, Mapping):
        return False
    return layers.get("class") == "choice" or any(_has_choice(part) for part in layers.values())
