"""task=forward: the outputs of a checkpoint for every sequence of a data set, handed to a callback."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.data.batching import Batching
from returnn_hydra.data.dataset import Dataset
from returnn_hydra.data.reading import BatchReader, ahead
from returnn_hydra.engine.forwarder import forward
from returnn_hydra.tasks.context import Context
from returnn_hydra.tasks.data import build_source, build_specs
from returnn_hydra.tasks.parts import load_model

logger = logging.getLogger(__name__)
WINDOW = 2000
"""Sequences that are sorted by length together: little padding, and few outputs wait for their turn."""


def run(context: Context) -> int:
    """Forward `forward_data` through the model of `load_epoch`; returns the number of sequences."""
    if not context.ranks.is_first:
        return 0
    values = context.values
    name = values["forward_data"]
    conf = context.dataset_conf(name, "forward_data")
    specs = {key: spec for key, spec in context.extern_data.items() if spec.available_for_inference}
    source = build_source(context.builder, conf, f"datasets.{name}", specs)
    if values["forward_callback"] is None:
        raise ConfigError("forward_callback: task=forward needs one (hdf, text, priors, ...)")
    model_outputs = build_specs(context.builder, values["model_outputs"], "model_outputs")
    model, epoch = load_model(context)
    callback = context.builder.make(
        values["forward_callback"],
        "forward_callback",
        folder=context.folder.path / f"forward.{epoch:03d}",
        data_name=name,
        model_outputs=model_outputs,
    )
    batches = corpus_batches(
        source.at_epoch(1), specs, Batching(batch_size=conf["batch_size"], max_seqs=conf["max_seqs"])
    )
    count = forward(model, context.step("forward_step"), batches, callback, context.device, model_outputs)
    logger.info("Forwarded %d sequences of '%s' with epoch %d", count, name, epoch)
    return count


def corpus_batches(
    source: Dataset, specs: dict[str, TensorSpec], batching: Batching
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every sequence once, as (corpus positions, batch); sorted by length within windows of the corpus."""
    indices = np.arange(len(source))
    sort_key = source.order_lengths()
    if sort_key is not None:
        windows = [indices[start : start + WINDOW] for start in range(0, len(indices), WINDOW)]
        indices = np.concatenate(
            [window[np.argsort(-sort_key[window], kind="stable")] for window in windows] or [indices]
        )
    lengths = {name: source.seq_lengths(name) for name, spec in specs.items() if spec.has_time}
    batches = batching.make(indices, {name: values for name, values in lengths.items() if values is not None})
    reader = BatchReader(source, specs)
    items = [(1, piece) for piece in batches]
    read = ahead((reader.read(item) for item in items), prefetch=4, pin_memory=False)
    for (_, piece), batch in zip(items, read, strict=True):
        yield piece.indices, batch
