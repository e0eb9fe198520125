"""task=forward: the outputs of a checkpoint for every sequence of a data set, handed to a callback."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from torch import nn

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.data.batching import Batching
from returnn_hydra.data.dataset import Dataset
from returnn_hydra.data.reading import BatchReader, ahead
from returnn_hydra.engine.callback import ForwardCallback
from returnn_hydra.engine.forwarder import ForwardStep, forward
from returnn_hydra.tasks.context import Context
from returnn_hydra.tasks.data import build_source, build_specs
from returnn_hydra.tasks.parts import load_model

logger = logging.getLogger(__name__)
WINDOW = 2000
"""Sequences that are sorted by length together: little padding, and few outputs wait for their turn."""


def run(context: Context) -> int:
    """Forward `forward_data` through the model of `load_epoch`; returns the number of sequences."""
    context.require_one_process()
    model_outputs = build_specs(context.builder, context.values["model_outputs"], "model_outputs")
    model, epoch = load_model(context)
    name = context.values["forward_data"]
    step = context.step("forward_step", model)
    callback = build_callback(context, "forward_callback", f"forward.{epoch:03d}", name, model_outputs=model_outputs)
    count = forward_data(context, name, model, step, callback, (), model_outputs)
    logger.info("Forwarded %d sequences of '%s' with epoch %d", count, name, epoch)
    return count


def build_callback(context: Context, key: str, folder: str, data_name: str, **surroundings: Any) -> Any:
    """The receiver of the outputs: a node or a class, function or object of the Python overrides.

    Args:
        folder: where it writes, inside the run's folder.
    """
    if context.values[key] is None:
        raise ConfigError(f"{key}: this task needs one")
    return context.builder.make(
        context.values[key], key, folder=context.folder.path / folder, data_name=data_name, **surroundings
    )


def forward_data(
    context: Context,
    name: str,
    model: nn.Module,
    step: ForwardStep,
    callback: ForwardCallback,
    more_streams: Collection[str] = (),
    model_outputs: Mapping[str, TensorSpec] | None = None,
) -> int:
    """Run a forward step over a whole data set; returns the number of sequences.

    Args:
        more_streams: streams that are used where the data set has them, though not `available_for_inference`.
    """
    specs = {key: spec for key, spec in context.extern_data.items() if spec.available_for_inference}
    batches = data_batches(context, name, specs, more_streams)
    return forward(model, step, batches, callback, context.device, model_outputs or {})


def data_batches(
    context: Context, name: str, specs: dict[str, TensorSpec], more_streams: Collection[str] = ()
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every sequence of a data set once, see `corpus_batches`.

    Args:
        specs: the streams that are needed.
        more_streams: further ones of `extern_data`, used where the data set has them.

    Raises:
        ConfigError: a stream is missing, or the data set has no corpus order.
    """
    conf = context.dataset_conf(name, "forward_data")
    built = build_source(context.builder, conf, f"datasets.{name}", specs)
    if not isinstance(built, Dataset):
        raise ConfigError(f"datasets.{name}: {type(built).__name__} is a stream, whose sequences have no corpus order")
    source = built.at_epoch(1)
    more = {key: context.extern_data[key] for key in more_streams if key in source.streams}
    return corpus_batches(source, {**specs, **more}, Batching(batch_size=conf["batch_size"], max_seqs=conf["max_seqs"]))


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
