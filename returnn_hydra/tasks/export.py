"""task=export: the encoder as an ONNX file, compared with the model on real data."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

from torch import nn

from returnn_hydra.config.errors import ConfigError
from returnn_hydra.engine.log import RESULTS
from returnn_hydra.engine.onnx_model import Encoder, Pair, export, largest_difference, require_packages
from returnn_hydra.tasks.context import Context
from returnn_hydra.tasks.forward import data_batches
from returnn_hydra.tasks.parts import load_model

logger = logging.getLogger(__name__)


def run(
    context: Context,
    file: str | None = None,
    data_key: str = "data",
    num_batches: int = 8,
    tolerance: float = 1e-4,
) -> float | None:
    """Export the encoder of `load_epoch`; returns the largest difference to it on `forward_data`.

    Args:
        file: default: encoder.onnx in export.<epoch> of the run's folder.
        data_key: stream of features.
        num_batches: batches of `forward_data` to compare on, and the first sequence of each by itself.
        tolerance: largest difference of an output that is allowed.

    Raises:
        ConfigError: the stream has not one vector in every frame; an option out of its range.
        ExportError: no ONNX file gives what the model does.
    """
    context.require_one_process()
    if num_batches < 1 or tolerance <= 0:
        raise ConfigError(f"task: num_batches={num_batches}, tolerance={tolerance}: expected more than 0")
    require_packages()
    spec = context.extern_data.get(data_key)
    if spec is None or spec.sparse or spec.shape != (None, spec.dim):
        raise ConfigError(f"task.data_key={data_key}: expected a stream of extern_data with one vector in every frame")
    model, epoch = load_model(context)
    name = context.values["forward_data"]
    pairs = checked_on(context, name, data_key, num_batches)
    target = Path(file) if file is not None else context.folder.path / f"export.{epoch:03d}" / "encoder.onnx"
    target.parent.mkdir(parents=True, exist_ok=True)
    encoder: nn.Module = Encoder(model.cpu()).eval()
    assert spec.dim is not None
    way, worst = export(
        encoder, spec.dim, target, lambda written: largest_difference(written, encoder, pairs, tolerance)
    )
    num_seqs = sum(len(lengths) for _, lengths in pairs)
    logger.info("Exported epoch %d by %s: %s", epoch, way, target)
    logger.log(
        RESULTS,
        "Largest difference to the model on %d sequences of '%s' (%d batches): %.2g, allowed: %g",
        *(num_seqs, name, len(pairs), worst, tolerance),
    )
    return worst


def checked_on(context: Context, name: str, data_key: str, num_batches: int) -> list[Pair]:
    """The first batches of a data set, and the first sequence of each by itself.

    Raises:
        ConfigError: the data set is empty.
    """
    pairs = []
    specs = {data_key: context.extern_data[data_key]}
    for _, batch in itertools.islice(data_batches(context, name, specs), num_batches):
        for part in (batch, batch.select(0, 1)):
            pairs.append((part[data_key], part.lengths[data_key]))
    if not pairs:
        raise ConfigError(f"forward_data={name}: no sequence to compare the exported model on")
    return pairs
