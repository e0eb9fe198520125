"""RETURNN's dataset dicts (`{"class": "HDFDataset", ...}`) as our data sets.

A dict becomes a plan: the node of the source (plain data with `_target_`, as in YAML; functions of the config stay
functions), the order of the sequences, and what concerns the batches. What differs from RETURNN:

* `seq_list_filter_file` filters before the sequences are partitioned, so that all parts have the same size.
* `window` and `context_window` are refused.
* A `seq_ordering` that stands on a MetaDataset beside a control data set without one is used (RETURNN ignores it).
* A generated data set is ordered as it says (RETURNN ignores `sorted` there).
* Tags are unique: data sets refuse repeated ones, so `unique_seq_tags` has nothing to do.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from returnn_hydra.compat.dataset_leaves import LEAVES, UNSUPPORTED, Planner
from returnn_hydra.compat.dataset_options import Options
from returnn_hydra.compat.dataset_plan import DATA, ORDER, PLAIN_ORDER, DatasetPlan, Node
from returnn_hydra.compat.map_seq import MapSeq, MapStream, output_specs
from returnn_hydra.config.errors import ConfigError, nearest
from returnn_hydra.config.literals import parse_literal
from returnn_hydra.data.dataset import Dataset

_CACHING = ("use_cache_manager", "cache_byte_size", "preload_next_n_sub_epochs", "buffer_size", "buf_size")


def plan_dataset(value: Any, path: str, default_ordering: Any = None) -> DatasetPlan:
    """The plan for what stands in a config as `train`, `dev`, ...

    Args:
        value: a dict; a function that returns one; a path of HDF files, separated by commas; or a dict as a text.
        path: where it stands, for errors.
        default_ordering: of a dict without `seq_ordering`; RETURNN's `batching`, and for dev and eval `sorted`.

    Raises:
        ConfigError: an unknown class or option, or one that is not supported, with what to do instead.
    """
    if callable(value) and not isinstance(value, type):
        value = value()
    if isinstance(value, str):
        value = _from_text(value, path)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}={value!r}: expected a dict with 'class'")
    options = Options(value, path)
    name = str(options.need("class"))
    if name in UNSUPPORTED:
        raise ConfigError(f"{path}.class={name}: {UNSUPPORTED[name]}")
    if name not in CLASSES:
        raise ConfigError(f"{path}.class={name!r}: no such data set{nearest(name, CLASSES)}")
    explicit = options.some(*ORDER)
    plan = CLASSES[name](options, explicit)
    if default_ordering is not None and "seq_ordering" not in value and name != "MetaDataset":
        plan.order.setdefault("seq_ordering", default_ordering)
    ordering = plan.order.get("seq_ordering")
    if isinstance(ordering, str) and ordering.startswith("random:"):
        plan.order["random_argument"] = "epochs"
    plan.batching.update(options.some("chunking", "min_chunk_size"))
    if plan.batching.get("chunking") in ("0", 0, None):
        plan.batching.clear()
    _common(options, plan)
    options.finish()
    plan.notes += options.notes
    return plan


def _from_text(text: str, path: str) -> Any:
    if text.strip().startswith("{"):
        return parse_literal(text, path)
    if text.startswith(("config:", "sprint:")):
        raise ConfigError(f"{path}={text!r}: write the dict itself; such texts are not evaluated")
    return {"class": "HDFDataset", "files": text.split(",")}


def _common(options: Options, plan: DatasetPlan) -> None:
    """What every data set of RETURNN takes."""
    options.idle("only names the data set", ["name"])
    options.idle("data sets know their sizes", ["estimated_num_seqs"])
    options.idle("data sets refuse repeated tags", ["unique_seq_tags"])
    options.idle("files are read where they are, when they are needed", _CACHING)
    options.idle("only concerns the log", ["suppress_load_seqs_print", "log_skipped_seqs"])
    options.only("window", (None, 0, 1), "windows of frames are not made from the data")
    windows = options.take("context_window")
    if any(size not in (None, 0, 1) for size in (windows.values() if isinstance(windows, Mapping) else [windows])):
        raise ConfigError(f"{options.path}.context_window={windows!r}: windows of frames are not made from the data")
    options.only("shuffle_frames_of_nseqs", (None, 0), "frames are not shuffled between sequences")
    options.only("chunking_variance", (None, 0, 0.0), "chunks have a fixed size")
    options.only("_num_shards", (None, 1), "the loader deals batches to processes")
    options.only("_shard_index", (None, 0), "the loader deals batches to processes")
    lengths = options.take("seq_order_seq_lens_file")
    if lengths is not None:
        plan.source = {"_target_": DATA + "ordered.LengthsFromFile", "dataset": plan.source, "seq_lens_file": lengths}
    for key in ("seq_list_filter_file", "seq_list_filter"):
        if (tags := options.take(key)) is not None:
            plan.tags_file = tags


# The data sets that hold others: (options, the order that stands in the dict) -> plan.


def _meta(options: Options, order: Node) -> DatasetPlan:
    path = options.path
    parts = {name: plan_dataset(part, f"{path}.datasets.{name}") for name, part in options.need("datasets").items()}
    control = options.take("seq_order_control_dataset")
    options.idle("the data sets know it", ["data_dims", "data_dtypes"])
    source: Node = {
        "_target_": DATA + "meta.MetaDataset",
        "datasets": {name: part.source if name == control else part.unordered for name, part in parts.items()},
        "data_map": {stream: list(where) for stream, where in options.need("data_map").items()},
        **options.some("seq_order_control_dataset", "seq_list_file"),
    }
    if control is not None:
        if control not in parts:
            raise ConfigError(
                f"{path}.seq_order_control_dataset={control!r}: no such data set{nearest(control, parts)}"
            )
        order = {**order, **parts[control].order}
    lengths = options.take("seq_lens_file")
    if lengths is not None:
        source = {"_target_": DATA + "ordered.LengthsFromFile", "dataset": source, "seq_lens_file": lengths}
    notes = [note for part in parts.values() for note in part.notes]
    return DatasetPlan(source, order, notes=notes, tags_file=parts[control].tags_file if control else None)


def _combined(options: Options, order: Node) -> DatasetPlan:
    parts = {
        name: plan_dataset(part, f"{options.path}.datasets.{name}") for name, part in options.need("datasets").items()
    }
    data_map: dict[str, dict[str, str]] = {}
    for (name, stream), ours in options.need("data_map").items():
        data_map.setdefault(name, {})[stream] = ours
    options.idle("the data sets know it", ["data_dims", "data_dtypes", "window"])
    source: Node = {
        "_target_": DATA + "combine.CombinedDataset",
        "datasets": {name: part.node() for name, part in parts.items()},
        "data_map": data_map,
        **options.some("sampling_sizes", "interleave_gumbel_scale"),
    }
    if order.get("seq_ordering") in ("reversed", "interleave", "random_dataset"):
        source["mixing"] = order.pop("seq_ordering")
        source.update({name: order[name] for name in ORDER[1:] if name != "repeat_epoch" and name in order})
        order = {name: order[name] for name in PLAIN_ORDER if name in order}
    return DatasetPlan(source, order)


def _concat(options: Options, order: Node) -> DatasetPlan:
    parts = [plan_dataset(part, f"{options.path}.datasets[{i}]") for i, part in enumerate(options.need("datasets"))]
    return DatasetPlan({"_target_": DATA + "concat.ConcatDataset", "datasets": [part.node() for part in parts]}, order)


def _concat_seqs(options: Options, order: Node) -> DatasetPlan:
    names = (
        "seq_len_file",
        "seq_tag_delim",
        "remove_in_between_postfix",
        "repeat_in_between_last_frame_up_to_multiple_of",
        "pad_narrow_data_to_multiple_of_target_len",
    )
    inner = plan_dataset(options.need("dataset"), f"{options.path}.dataset")
    source = {
        "_target_": DATA + "concat.ConcatSeqsDataset",
        "dataset": inner.unordered,
        "seq_list_file": options.need("seq_list_file"),
        **options.some(*names),
    }
    return DatasetPlan(source, order, notes=inner.notes)


def _inner(options: Options, order: Node) -> DatasetPlan:
    """The plan of the wrapped data set, in this order if there is one."""
    plan = plan_dataset(options.need("dataset"), f"{options.path}.dataset")
    plan.order = order or plan.order
    return plan


def _multi_proc(options: Options, order: Node) -> DatasetPlan:
    plan = _inner(options, order)
    plan.num_workers = options.take("num_workers", 1)
    options.idle("sequences come in their order whichever worker reads them", ["sharding_method"])
    return plan


def _multi_epoch(options: Options, order: Node) -> DatasetPlan:
    inner = plan_dataset(options.need("dataset"), f"{options.path}.dataset")
    source = {
        "_target_": DATA + "variable.MultiEpochDataset",
        "dataset": inner.node(),
        "multi_epoch": options.need("multi_epoch"),
    }
    return DatasetPlan(source, order, notes=inner.notes)


def _postprocessing(options: Options, order: Node) -> DatasetPlan:
    plan = _inner(options, order)
    declared = options.take("map_outputs")
    try:
        outputs = None if declared is None else output_specs(declared)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"{options.path}: {error}") from error
    shared = {} if outputs is None else {"map_outputs": outputs}
    options.idle("streams tell their lengths themselves", ["map_seq_stream_preserves_num_seqs"])
    function, stream = options.take("map_seq"), options.take("map_seq_stream")
    workers = options.take("num_workers", 0)
    if (function is None) == (stream is None):
        raise ConfigError(f"{options.path}: expected either map_seq or map_seq_stream")
    if function is not None:
        target = DATA + "postprocessing.PostprocessingDataset"
        plan.source = {"_target_": target, "dataset": plan.source, "map_seq": MapSeq(function, outputs), **shared}
        plan.num_workers = workers
    else:
        target = DATA + "postprocessing.PostprocessingStream"
        plan.source = {
            "_target_": target,
            "source": plan.node(),
            "map_seq_stream": MapStream(stream, outputs),
            **shared,
        }
        plan.source.update({"num_workers": workers, "num_shards": max(workers, 1)})
        plan.order, plan.tags_file = {}, None
    return plan


def _distribute(options: Options, order: Node) -> DatasetPlan:
    source = {
        "_target_": DATA + "distribute.DistributeFilesDataset",
        "files": options.need("files"),
        "get_sub_epoch_dataset": DictFunction(
            options.need("get_sub_epoch_dataset"), f"{options.path}.get_sub_epoch_dataset"
        ),
        **{name: value for name, value in order.items() if name != "repeat_epoch"},
    }
    options.idle("the loader deals batches to processes", ["distrib_shard_files", "sharding_fix"])
    return DatasetPlan(source)


def _variable(options: Options, order: Node) -> DatasetPlan:
    options.idle("the current one is kept", ["dataset_lru_cache_size", "always_same_tags"])
    function = DictFunction(options.need("get_dataset"), f"{options.path}.get_dataset")
    return DatasetPlan({"_target_": DATA + "variable.VariableDataset", "get_dataset": function}, order)


class DictFunction:
    """A function of a config that returns a dataset dict, as one that returns the data set."""

    def __init__(self, function: Callable[..., Any], path: str) -> None:
        self.function = function
        self.path = path

    def __call__(self, *arguments: Any, **keywords: Any) -> Dataset:
        return build_dataset(self.function(*arguments, **keywords), self.path)


CLASSES: dict[str, Planner] = {
    **LEAVES,
    "MetaDataset": _meta,
    "CombinedDataset": _combined,
    "ConcatDataset": _concat,
    "ConcatSeqsDataset": _concat_seqs,
    "MultiProcDataset": _multi_proc,
    "MultiEpochDataset": _multi_epoch,
    "PostprocessingDataset": _postprocessing,
    "DistributeFilesDataset": _distribute,
    "VariableDataset": _variable,
}
"""RETURNN class to the function that plans it."""


def build_dataset(value: Any, path: str, default_ordering: Any = None) -> Dataset:
    """The data set of a dict, in its own order."""
    return build_node(plan_dataset(value, path, default_ordering).node())


def build_node(node: Any) -> Any:
    """Build what stands in a node of this module: only classes of returnn_hydra.data."""
    if isinstance(node, Mapping):
        values = {key: build_node(value) for key, value in node.items() if key != "_target_"}
        if "_target_" not in node:
            return values
        module, _, name = node["_target_"].rpartition(".")
        if not module.startswith(DATA):
            raise ConfigError(f"_target_={node['_target_']}: only {DATA}* is built here")
        return getattr(importlib.import_module(module), name)(**values)
    if isinstance(node, list | tuple) and not isinstance(node, str):
        return type(node)(build_node(item) for item in node)
    return node
