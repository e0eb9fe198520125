"""Data sets, their order and their batches, from the configuration."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.build import Builder
from returnn_hydra.config.errors import ConfigError, nearest
from returnn_hydra.data.batches import Piece
from returnn_hydra.data.batching import Batching
from returnn_hydra.data.dataset import DataError, Dataset
from returnn_hydra.data.filter import FilterDataset
from returnn_hydra.data.loader import Loader
from returnn_hydra.data.order import SeqOrder
from returnn_hydra.data.postprocessing import DatasetStream
from returnn_hydra.data.reading import BatchReader
from returnn_hydra.data.stream_loader import Grouping, StreamLoader
from returnn_hydra.data.streaming import StreamingDataset

BLOCK = 256
"""Sequences that are checked together."""


def build_specs(builder: Builder, nodes: Mapping[str, Any], path: str) -> dict[str, TensorSpec]:
    """The streams of an extern_data or model_outputs node.

    Raises:
        ConfigError: an entry that contradicts itself.
    """
    specs = {}
    for name, node in nodes.items():
        values = {**node, "vocab": builder.build(node.get("vocab"), f"{path}.{name}.vocab")}
        if values.get("shape") is not None:
            values["shape"] = tuple(values["shape"])
        try:
            specs[name] = TensorSpec(**values)
        except ValueError as error:
            raise ConfigError(f"{path}.{name}: {error}") from error
    return specs


def build_source(
    builder: Builder, conf: Mapping[str, Any], path: str, specs: Mapping[str, TensorSpec]
) -> Dataset | StreamingDataset:
    """The source of a data set, filtered by its tag list; it has every stream that is asked for.

    Raises:
        ConfigError: a stream is missing, or not what extern_data says.
    """
    try:
        source = builder.build(conf["source"], f"{path}.source")
    except DataError as error:
        error.args = (f"{path}.source: {error}",)
        raise
    if not isinstance(source, Dataset | StreamingDataset):
        raise ConfigError(f"{path}.source: expected a data set, got {type(source).__name__}")
    for name, spec in specs.items():
        if name not in source.streams:
            there = ", ".join(source.streams)
            raise ConfigError(
                f"extern_data.{name}: {path} has no stream '{name}'{nearest(name, source.streams)} (there is: {there})"
            )
        found = source.streams[name]
        if found.dim is not None and spec.dim is not None and (found.dim, found.sparse) != (spec.dim, spec.sparse):
            raise ConfigError(
                f"extern_data.{name}: expected dim={spec.dim} sparse={spec.sparse}, "
                f"{path} has dim={found.dim} sparse={found.sparse}"
            )
    if conf["seq_list_filter"] is not None:
        if not isinstance(source, Dataset):
            raise ConfigError(f"{path}.seq_list_filter: {type(source).__name__} is a stream, which can't be filtered")
        wanted = conf["seq_list_filter"]
        key = "seq_list_filter_file" if isinstance(wanted, str) else "seq_tags"
        source = FilterDataset(source, **{key: wanted})
    return source


def check_data(loader: Loader | StreamLoader) -> int:
    """Read every sequence of epoch 1, used or not; returns how many. Streams of unknown length: what the epoch gives.

    Raises:
        DataError: the first thing that is wrong: tags, shapes, labels out of their range, NaN or infinity.
    """
    if isinstance(loader, StreamLoader):
        checking = copy.copy(loader)
        checking.check_finite = True
        return sum(batch.num_seqs for batch in checking.epoch(1))
    reader = BatchReader(loader.dataset, loader.specs, check_finite=True)
    num_seqs = len(loader.dataset.at_epoch(1))
    for start in range(0, num_seqs, BLOCK):
        reader.read((1, Piece(np.arange(start, min(start + BLOCK, num_seqs)))))
    return num_seqs


def knows_lengths(source: Dataset, specs: Mapping[str, TensorSpec]) -> bool:
    """Whether batches can be made ahead: every used stream with a time axis knows its lengths without being read."""
    return all(source.seq_lengths(name) is not None for name, spec in specs.items() if spec.has_time)


def build_loader(
    builder: Builder,
    conf: Mapping[str, Any],
    path: str,
    specs: Mapping[str, TensorSpec],
    seed: int,
    grouping: Grouping | None = None,
    **surroundings: Any,
) -> Loader | StreamLoader:
    """A data set with its order and its batches; a streaming source has no order but its own.

    Args:
        grouping: makes the batches instead, as the sequences come.
        surroundings: further arguments of Loader: pin_memory, rank, world_size.
    """
    source = build_source(builder, conf, path, specs)
    try:
        order = SeqOrder(
            conf["seq_ordering"],
            seed=seed if conf["seed"] is None else conf["seed"],
            partition_epoch=conf["partition_epoch"],
            repeat_epoch=conf["repeat_epoch"],
            keep_epochs=conf["keep_epochs"],
        )
        batching = Batching(
            batch_size=conf["batch_size"],
            max_seqs=conf["max_seqs"],
            packed_batch_size=conf["packed_batch_size"],
            buckets=conf["buckets"],
            bucket_stream=conf["bucket_stream"],
            random_bucket_prob=conf["random_bucket_prob"],
            min_seq_length=conf["min_seq_length"],
            max_seq_length=conf["max_seq_length"],
            chunking=conf["chunking"],
            min_chunk_size=conf["min_chunk_size"],
            on_too_long=conf["on_too_long"],
            shuffle_batches=conf["shuffle_batches"],
        )
        options = {**surroundings, **{name: conf[name] for name in ("num_workers", "prefetch", "check_finite")}}
        if getattr(source, "is_rank_part", False):  # the files were dealt to the ranks already
            options |= {"rank": 0, "world_size": 1}
        if isinstance(source, Dataset) and grouping is None and knows_lengths(source, specs):
            return Loader(source, specs, order, batching, **options)
        if isinstance(source, Dataset):
            source = DatasetStream(source, order)
        elif order != SeqOrder(seed=order.seed):
            raise ValueError(f"seq_ordering: {type(source).__name__} is a stream, which has no order but its own")
        options.pop("equal_batches", None)
        return StreamLoader(source, specs, batching, seed=order.seed, grouping=grouping, **options)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
