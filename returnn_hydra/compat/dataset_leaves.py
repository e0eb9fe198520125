"""RETURNN's data sets that hold no other data set: a function for each, (options, the order in the dict) -> plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from returnn_hydra.compat.dataset_options import Options
from returnn_hydra.compat.dataset_plan import DATA, DatasetPlan, Node, filtered
from returnn_hydra.compat.map_seq import AudioFunction
from returnn_hydra.compat.stream_specs import stream_nodes
from returnn_hydra.compat.vocab_dicts import vocab_node
from returnn_hydra.config.errors import ConfigError

Planner = Callable[[Options, Node], DatasetPlan]


def _hdf(options: Options, order: Node) -> DatasetPlan:
    return DatasetPlan({"_target_": DATA + "hdf.HDFDataset", "files": options.need("files")}, order)


def _ogg_zip(options: Options, order: Node) -> DatasetPlan:
    path = options.path
    names = ("targets_post_process", "content_name", "zip_audio_files_have_name_as_prefix")
    audio = options.take("audio")
    source: Node = {
        "_target_": DATA + "audio.AudioZipDataset",
        "path": options.need("path"),
        "audio": None if audio is None else _audio(audio),
        "targets": vocab_node(options.take("targets"), f"{path}.targets"),
        **options.some(*names),
    }
    if (segments := options.take("segment_file")) is not None:
        source = filtered(source, segments)
    size, seed = options.take("fixed_random_subset"), options.take("fixed_random_subset_seed", 42)
    if size is not None:
        source = {"_target_": DATA + "filter.RandomSubset", "dataset": source, "size": size, "seed": seed}
    if curriculum := options.take("epoch_wise_filter"):
        limits = {_epochs(epochs): limit["max_mean_len"] for epochs, limit in curriculum.items()}
        source = {"_target_": DATA + "filter.CurriculumDataset", "dataset": source, "max_mean_length": limits}
    return DatasetPlan(source, order)


def _audio(options: Mapping[str, Any]) -> Node:
    """The features; functions that draw random numbers get RETURNN's kind of generator."""
    drawing = {key: AudioFunction(options[key]) for key in ("features", "pre_process") if callable(options.get(key))}
    return {"_target_": DATA + "features.AudioFeatures", **options, **drawing}


def _epochs(key: Any) -> str:
    first, last = key
    return f"{first}-{'' if last is None else last}"


def _called(value: Any) -> Any:
    """Files may be functions that give them, so that files are only copied where they are needed."""
    return value() if callable(value) else value


def _file(options: Options, name: str) -> Any:
    return _called(options.take(name))


def _lm(options: Options, order: Node) -> DatasetPlan:
    words = options.some("word_based", "seq_end_symbol", "unknown_symbol", "auto_replace_unknown_symbol")
    words |= options.some("word_end_symbol")
    if (replacements := _file(options, "orth_replace_map_file")) is not None:
        words["orth_replace_map_file"] = replacements
    words |= options.take("parse_orth_opts") or {}
    vocab = vocab_node(options.take("orth_vocab"), f"{options.path}.orth_vocab")
    files = [_file(options, name) for name in ("orth_symbols_map_file", "orth_symbols_file")]
    symbols = next((file for file in files if file is not None), None)
    if vocab is None and symbols is None:
        raise ConfigError(f"{options.path}: expected orth_vocab or orth_symbols_map_file")
    if vocab is None:
        vocab = {"_target_": DATA + "orth_vocab.OrthVocabulary", "vocab_file": symbols, **words}
    names = ("skip_empty_lines", "add_delayed_seq_data", "delayed_seq_data_start_symbol", "seq_list_file", "dtype")
    source = {
        "_target_": DATA + "text.LmDataset",
        "corpus_file": _called(options.need("corpus_file")),
        "vocab": vocab,
        **options.some(*names, "tag_prefix", "orth_post_process"),
    }
    source.setdefault("dtype", "smallest")
    source["skip_invalid_seqs"] = not options.take("error_on_invalid_seq", True)
    options.only("phone_info", (None,), "phonemes are not supported")
    options.only("add_random_phone_seqs", (None, 0), "phonemes are not supported")
    return DatasetPlan(source, order)


def _translation(options: Options, order: Node) -> DatasetPlan:
    folder, postfix = options.need("path"), options.need("file_postfix")
    unknown = options.take("unknown_label")
    sides = ["source"] if options.take("source_only", False) else ["source", "target"]
    source: Node = {"_target_": DATA + "text.TranslationDataset"}
    for side in sides:
        label = unknown.get("data" if side == "source" else "classes") if isinstance(unknown, Mapping) else unknown
        source[f"{side}_file"] = _text_file(f"{folder}/{side}.{postfix}")
        source[f"{side}_vocab"] = {
            "_target_": DATA + "vocab.Vocabulary",
            "vocab_file": f"{folder}/{side}.vocab.pkl",
            "unknown_label": label,
        }
    return DatasetPlan({**source, **options.some("source_postfix", "target_postfix", "seq_list_file")}, order)


def _text_file(name: str) -> str:
    """The file, or its packed form where only that exists."""
    return f"{name}.gz" if not Path(name).exists() and Path(f"{name}.gz").exists() else name


def _text_dict(options: Options, order: Node) -> DatasetPlan:
    vocab = vocab_node(options.need("vocab"), f"{options.path}.vocab")
    names = options.some("filename", "item_format")
    return DatasetPlan({"_target_": DATA + "text.TextDictDataset", "vocab": vocab, **names}, order)


def _static(options: Options, order: Node) -> DatasetPlan:
    dims = options.take("output_dim") or {}
    options.idle("the arrays say it", ["target_list", "input_dim"])
    streams = {name: _legacy_spec(value) for name, value in dims.items()}
    source = {"_target_": DATA + "arrays.StaticDataset", "data": options.need("data"), "streams": streams or None}
    return DatasetPlan(source, order)


def _legacy_spec(value: Any) -> Node:
    """`dim` or `(dim, ndim)`: one axis means labels."""
    dim, ndim = value if isinstance(value, list | tuple) else (value, 2)
    return {"dim": dim, "sparse": ndim == 1, "shape": (None,) * (ndim - 1) + ((dim,) if ndim > 1 else (None,))}


def _anything(options: Options, order: Node) -> DatasetPlan:
    streams = stream_nodes(options.need("data_keys"), f"{options.path}.data_keys")
    return DatasetPlan({"_target_": DATA + "arrays.AnythingDataset", "streams": streams}, order)


def _map(options: Options, order: Node) -> DatasetPlan:
    data = options.need("map_dataset")
    data = data() if isinstance(data, type) or (callable(data) and not hasattr(data, "__getitem__")) else data
    types = options.take("data_types") or getattr(data, "data_types", None)
    if types is None:
        raise ConfigError(f"{options.path}: 'data_types' is missing: {{stream: its options, e.g. dim and sparse}}")
    streams = stream_nodes(types, f"{options.path}.data_types")
    return DatasetPlan({"_target_": DATA + "map.MapDataset", "data": data, "streams": streams}, order)


def _from_list(options: Options, order: Node) -> DatasetPlan:
    streams = stream_nodes(options.need("data_types"), f"{options.path}.data_types")
    options.idle("the lengths of all streams are known", ["sort_data_key"])
    source = {"_target_": DATA + "arrays.StaticDataset", "data": options.need("data_list"), "streams": streams}
    return DatasetPlan(source, order)


def _numpy_dump(options: Options, order: Node) -> DatasetPlan:
    names = ("prefix", "postfix", "start_seq", "end_seq", "num_inputs", "num_outputs")
    return DatasetPlan({"_target_": DATA + "numpy_dump.NumpyDumpDataset", **options.some(*names)}, order)


def _hugging_face(options: Options, order: Node) -> DatasetPlan:
    path = options.path
    opts = options.need("dataset_opts")
    rename = options.take("rename_columns") or {}
    instead = "do it once, save the result with save_to_disk, and give that folder"
    for name in ("map_func", "cast_columns", "filter_func"):
        options.only(name, (None,), instead)
    split = None
    if isinstance(opts, Mapping):
        inner = Options(opts, f"{path}.dataset_opts")
        opts, split = inner.take("path") or inner.need("data_files"), inner.take("split")
        inner.finish()
    source = {
        "_target_": DATA + "huggingface.HuggingFaceDataset",
        "dataset": opts,
        "streams": stream_nodes(options.need("data_format"), f"{path}.data_format"),
        "columns": {new: old for old, new in rename.items()},
        "split": split,
        **options.some("seq_tag_column", "sorting_seq_len_column"),
    }
    options.idle("files are read where they are", ["use_file_cache"])
    return DatasetPlan(source, order)


def _generated(target: str, *names: str) -> Callable[[Options, Node], DatasetPlan]:
    """A generated data set: its content depends on the epoch and the seeds."""

    def plan(options: Options, order: Node) -> DatasetPlan:
        content: Node = {
            name: order[name]
            for name in ("partition_epoch", "fixed_random_seed", "random_seed_offset")
            if name in order
        }
        source: Node = {
            "_target_": f"{DATA}generating.{target}",
            "num_seqs": options.need("num_seqs"),
            **options.some(*names),
        }
        if target != "DummyDataset":
            source.update(content)
        kept = {name: value for name, value in order.items() if name not in ("partition_epoch", "fixed_random_seed")}
        return DatasetPlan(source, order if target == "DummyDataset" else kept)

    return plan


_DUMMY = ("input_dim", "output_dim", "seq_len", "input_max_value", "input_shift", "input_scale")
LEAVES: dict[str, Planner] = {
    "HDFDataset": _hdf,
    "OggZipDataset": _ogg_zip,
    "LmDataset": _lm,
    "TranslationDataset": _translation,
    "TextDictDataset": _text_dict,
    "StaticDataset": _static,
    "AnythingDataset": _anything,
    "MapDatasetWrapper": _map,
    "FromListDataset": _from_list,
    "NumpyDumpDataset": _numpy_dump,
    "HuggingFaceDataset": _hugging_face,
    "Task12AXDataset": _generated("Task12AX"),
    "TaskEpisodicCopyDataset": _generated("EpisodicCopyTask"),
    "TaskXmlModelingDataset": _generated("XmlTask", "limit_stack_depth"),
    "TaskVariableAssignmentDataset": _generated("VariableAssignmentTask"),
    "TaskNumberBaseConvertDataset": _generated(
        "NumberBaseTask", "input_base", "output_base", "min_input_seq_len", "max_input_seq_len"
    ),
    "CopyTaskDataset": _generated(
        "CopyTask", "nsymbols", "minlen", "maxlen", "minlen_epoch_factor", "maxlen_epoch_factor"
    ),
    "DummyDataset": _generated("DummyDataset", *_DUMMY),
    "DummyDatasetMultipleSequenceLength": _generated("DummyDataset", *_DUMMY),
}
"""RETURNN class to the function that plans it."""

_RASR = "RASR (Sprint) is not called from here; dump its data to HDF files with RETURNN's hdf_dump, then use HDFDataset"
UNSUPPORTED = {
    "ExternSprintDataset": _RASR,
    "SprintCacheDataset": _RASR,
    "SprintDatasetBase": _RASR,
    "LibriSpeechCorpus": "convert the corpus to an OggZipDataset archive (NAME.zip with NAME.txt), then use that class",
    "BlissDataset": "convert the corpus to an OggZipDataset archive (NAME.zip with NAME.txt), then use that class",
    "TimitDataset": "convert the corpus to an OggZipDataset archive (NAME.zip with NAME.txt), then use that class",
    "NltkTimitDataset": "convert the corpus to an OggZipDataset archive (NAME.zip with NAME.txt), then use that class",
    "StereoHdfDataset": "it has been out of use for years; use HDFDataset",
    "NextGenHDFDataset": "copy its streams to HDF files of the usual layout, then use HDFDataset and MetaDataset",
    "SiameseHDFDataset": "copy its streams to HDF files of the usual layout, then use HDFDataset and MetaDataset",
    "ChunkShuffleDataset": "use chunking, and seq_ordering random",
    "ClusteringDataset": "write the cluster of every sequence to an HDF file, and join it with MetaDataset",
    "RawWavDataset": "convert the corpus to an OggZipDataset archive (NAME.zip with NAME.txt), then use that class",
    "Enwik8Corpus": "use LmDataset with Utf8ByteTargets on the text",
}
"""Classes that are refused, and what to do instead."""
