"""The config's data sets as loaders: dataset dicts, and the options of batches that stand beside them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.compat.dataset_dicts import plan_dataset
from returnn_hydra.compat.dataset_plan import DATA
from returnn_hydra.config.errors import ConfigError, nearest
from returnn_hydra.config.schema import DatasetConf
from returnn_hydra.data.batching import Batching
from returnn_hydra.data.dataset import Dataset
from returnn_hydra.data.loader import Loader
from returnn_hydra.data.reading import BatchReader, ahead
from returnn_hydra.data.stream_loader import StreamLoader
from returnn_hydra.tasks.data import build_loader, build_source
from returnn_hydra.tasks.returnn.batching_function import FunctionBatches
from returnn_hydra.tasks.returnn.session import Session

logger = logging.getLogger(__name__)
NAMES = ("train", "dev", "eval")
GENERATED = DATA + "generating."


def evaluated_names(values: Mapping[str, Any]) -> list[str]:
    """The data sets with scores after every epoch: dev, eval, and those of `eval_datasets`."""
    return [name for name in ("dev", "eval") if values.get(name)] + list(values.get("eval_datasets") or {})


def dataset_value(session: Session, name: str) -> Any:
    """What the config says of a data set, by its name.

    Raises:
        ConfigError: there is no such data set.
    """
    values = session.values
    found = values.get(name) if name in NAMES else (values.get("eval_datasets") or {}).get(name)
    if not found:
        there = [key for key in NAMES if values.get(key)] + list(values.get("eval_datasets") or {})
        raise ConfigError(f"{name}: no such data set{nearest(name, there)} (there is: {', '.join(there) or 'none'})")
    return found


def dataset_conf(session: Session, name: str, value: Any) -> dict[str, Any]:
    """The data set as an entry of our configuration.

    Chunks are cut in training; RETURNN's torch engine cuts them in evaluations, too, its TensorFlow engine does not.
    """
    values = session.values
    ordering = {"train": values.get("batching", "default"), "dev": "sorted", "eval": "sorted"}.get(name)
    plan = plan_dataset(value, name, ordering)
    session.report.notes += plan.notes
    if is_generated(plan.source) and plan.order.get("seq_ordering") in ("sorted", "sorted_reverse"):
        del plan.order["seq_ordering"]
    conf = {**dataclasses.asdict(DatasetConf()), **plan.conf()}
    conf["batch_size"] = batch_size(values, name)
    conf["max_seqs"] = values.get("max_seqs")
    conf["packed_batch_size"] = values.get("packed_batch_size")
    conf.update(buckets(values))
    for key in ("min_seq_length", "max_seq_length"):
        conf[key] = values.get(key) or None
    if name == "train" or not session.is_network:
        for key in ("chunking", "min_chunk_size"):
            if values.get(key) not in (None, 0, "0"):
                conf[key] = values[key]
    elif session.is_network:
        conf.update(chunking=None)
    shuffle = values.get("online_shuffle_batches")
    if name == "train" and shuffle:
        conf["shuffle_batches"] = shuffle["buffer_size"] if isinstance(shuffle, Mapping) else shuffle
    wished = (values.get("torch_dataloader_opts") or {}).get("num_workers", 0), values.get("num_workers_per_gpu", 0)
    conf["num_workers"] = max(conf["num_workers"], *wished)
    return conf


def is_generated(source: Mapping[str, Any]) -> bool:
    """Data made from random numbers, which RETURNN can't sort: it takes `sorted` for `default` there."""
    return source["_target_"].startswith(GENERATED)


def batch_size(values: Mapping[str, Any], name: str) -> Any:
    """The limit of frames for a data set.

    Raises:
        ConfigError: there is neither this nor `max_seqs`.
    """
    special = values.get("batch_size_train" if name == "train" else "batch_size_dev")
    found = special if special is not None else values.get("batch_size")
    if found is None and not any(values.get(key) for key in ("max_seqs", "packed_batch_size", "torch_batching")):
        raise ConfigError("batch_size: neither batch_size nor max_seqs is set")
    return int(found) if isinstance(found, float) else found


def buckets(values: Mapping[str, Any]) -> dict[str, Any]:
    """What `torch_batching` says of the batches.

    Raises:
        ConfigError: it is not RETURNN's BucketOrderingIterDataPipe.
    """
    options = values.get("torch_batching")
    if options is None or callable(options):
        return {}
    known = {"class", "buckets", "length_key", "random_bucket_prob", "seed", "monotonic_data_keys"}
    if options.keys() - known or options.get("class") != "BucketOrderingIterDataPipe" or not options.get("length_key"):
        raise ConfigError(
            f"torch_batching={options!r}: expected the class BucketOrderingIterDataPipe with buckets and a length_key"
        )
    return {
        "buckets": options.get("buckets"),
        "bucket_stream": options["length_key"],
        "random_bucket_prob": float(options.get("random_bucket_prob", 0.0)),
    }


def loader(
    session: Session, name: str, value: Any, specs: Mapping[str, TensorSpec], equal_batches: bool = False
) -> Loader | StreamLoader:
    """The batches of a data set, this rank's part of them.

    Streams that extern_data leaves out count, too: those that a dict as `batch_size` names, with a number all of them.
    """
    conf = dataset_conf(session, name, value)
    source, read = open_source(session, conf, name, specs)
    counted, limit = dict(read), conf["batch_size"]
    if not session.is_network:
        others = {key: spec for key, spec in source.streams.items() if key not in specs and spec.has_time}
        counted |= {key: spec for key, spec in others.items() if not isinstance(limit, Mapping) or key in limit}
    return build_loader(
        session.builder,
        {**conf, "source": source, "seq_list_filter": None},
        name,
        counted,
        session.seed,
        grouping=FunctionBatches.of(session.values, name == "train", counted),
        rank=session.ranks.rank,
        world_size=session.ranks.size,
        equal_batches=equal_batches,
        pin_memory=session.device.type == "cuda",
    )


def open_source(session: Session, conf: Mapping[str, Any], name: str, specs: Mapping[str, TensorSpec]) -> Any:
    """(the source, what to read of it). Another number of classes than extern_data's is taken as the data has it.

    RETURNN does not compare these numbers either; a class index that the data itself doesn't know is an error.
    """
    source = session.builder.build(conf["source"], f"{name}.source")
    streams = getattr(source, "streams", {})
    read = {}
    for key, spec in specs.items():
        found = streams.get(key)
        if found is not None and found.sparse and spec.sparse and found.dim not in (None, spec.dim):
            logger.warning("%s: stream '%s' has %s classes, extern_data says %s", name, key, found.dim, spec.dim)
            spec = dataclasses.replace(spec, dim=found.dim, vocab=None)
        read[key] = spec
    return build_source(session.builder, {**conf, "source": source}, name, read), read


def forward_batches(
    session: Session, name: str, value: Any, specs: Mapping[str, TensorSpec], epoch: int, order: str
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every sequence of an epoch once, as (positions 0, 1, ... in this order, batch).

    Args:
        order: `longest` first, where the lengths are known; the data set's `own`; or that of the `corpus`.
    """
    conf = dataset_conf(session, name, value)
    conf.update(chunking=None, min_chunk_size=0, min_seq_length=None, max_seq_length=None, shuffle_batches=False)
    if (special := session.values.get("forward_batch_size")) is not None:
        conf["batch_size"] = special
    if isinstance(conf["batch_size"], Mapping):
        declared = {**(session.values.get("extern_data") or {}), **_outputs(session.values)}
        conf["batch_size"] = {k: v for k, v in conf["batch_size"].items() if k in specs or k not in declared}
    if order == "corpus":
        conf["seq_ordering"] = "default"
    sort = order == "longest" and not is_generated(conf["source"])
    source, read = open_source(session, conf, name, specs)
    first = 0
    for batch in _batches(session, name, conf, source, read, epoch, sort):
        yield np.arange(first, first + batch.num_seqs), batch
        first += batch.num_seqs


def _outputs(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """`num_outputs`, which older configs have instead of `extern_data`."""
    found = values.get("num_outputs")
    return found if isinstance(found, Mapping) else {}


def _batches(
    session: Session, name: str, conf: Mapping[str, Any], source: Any, specs: Mapping[str, TensorSpec], epoch: int,
    sort: bool,
) -> Iterator[Batch]:  # fmt: skip
    lengths = source.at_epoch(epoch).order_lengths() if isinstance(source, Dataset) else None
    if not sort or lengths is None:
        ready = {**conf, "source": source, "seq_list_filter": None}
        return build_loader(session.builder, ready, name, specs, session.seed).epoch(epoch)
    dataset = source.at_epoch(epoch)
    indices = np.argsort(-lengths, kind="stable")
    known = {key: dataset.seq_lengths(key) for key, spec in specs.items() if spec.has_time}
    batching = Batching(batch_size=conf["batch_size"], max_seqs=conf["max_seqs"])
    pieces = batching.make(indices, {key: value for key, value in known.items() if value is not None}, epoch)
    reader = BatchReader(source, specs)
    return ahead((reader.read((epoch, piece)) for piece in pieces), prefetch=4, pin_memory=False)
