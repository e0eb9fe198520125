"""Data sets of the HuggingFace `datasets` library that are on disk or in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.audio_file import read_audio
from returnn_hydra.data.checks import checked_array, did_you_mean, specs_from_options, stream_spec
from returnn_hydra.data.dataset import DataError, Dataset, Examples
from returnn_hydra.data.features import AudioFeatures
from returnn_hydra.data.files import nearest
from returnn_hydra.data.views import Indices, as_array, tag_index
from returnn_hydra.extras import require

READERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".arrow": "arrow"}


class HuggingFaceDataset(Dataset):
    """Columns of a table as streams.

    Args:
        dataset: a folder made by `save_to_disk`; or .parquet, .jsonl, .csv, .arrow files; or a `datasets.Dataset`.
        streams: specs. A column of text is encoded where its spec has a vocabulary.
        columns: {stream: column}, where they have different names.
        audio: {stream: AudioFeatures} for columns of audio.
        split: which one, if the folder holds several.
        seq_tag_column: the column with the tags; None: the tags are `seq-0`, `seq-1`, ...
        sorting_seq_len_column: the column that orderings by length sort by.
        seed: of vocabularies and features that draw; draws depend on (seed, epoch, sequence) alone.

    Raises:
        DataError: there is no such data set or column, or a value is not what its spec says.
    """

    def __init__(
        self,
        dataset: Any,
        streams: Mapping[str, TensorSpec | Mapping[str, Any]],
        columns: Mapping[str, str] | None = None,
        audio: Mapping[str, AudioFeatures] | None = None,
        split: str | None = None,
        seq_tag_column: str | None = "id",
        sorting_seq_len_column: str | None = None,
        seed: int = 1,
    ) -> None:
        self.audio = dict(audio or {})
        given = {name: features.spec for name, features in self.audio.items()}
        self.streams = specs_from_options({**streams, **given})
        self.columns = {name: (columns or {}).get(name, name) for name in self.streams}
        self.seq_tag_column = seq_tag_column
        self.sorting_seq_len_column = sorting_seq_len_column
        self.seed = seed
        self.epoch = 1
        self.table = _load(dataset, split)
        wanted = [*self.columns.values(), *(c for c in (seq_tag_column, sorting_seq_len_column) if c is not None)]
        for column in wanted:
            if column not in self.table.column_names:
                raise DataError(
                    f"HuggingFaceDataset: no column {column!r}{did_you_mean(column, self.table.column_names)}"
                )
        undecoded = require("datasets", extra="huggingface").Audio(decode=False)
        for name in self.audio:
            self.table = self.table.cast_column(self.columns[name], undecoded)

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def _tags(self) -> list[str]:
        if self.seq_tag_column is None:
            return [f"seq-{i}" for i in range(len(self))]
        tags = [str(tag) for tag in self.table[self.seq_tag_column]]
        tag_index(tags, f"column {self.seq_tag_column!r}")
        return tags

    def seq_tags(self, indices: Indices) -> list[str]:
        return [self._tags[i] for i in indices]

    @cached_property
    def _lengths(self) -> dict[str, np.ndarray | None]:
        return {}

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        spec = stream_spec(self, stream)
        if not spec.has_time or stream in self.audio:
            return None
        if stream not in self._lengths:
            self._lengths[stream] = self._count(stream, spec)
        return self._lengths[stream]

    def _count(self, stream: str, spec: TensorSpec) -> np.ndarray | None:
        column = self.columns[stream]
        if self._is_text(column) and spec.vocab is not None:
            if spec.vocab.is_random:
                return None
            return np.array([len(spec.vocab.encode(text)) for text in self.table[column]], dtype=np.int64)
        if spec.time_axis != 0:
            return None
        arrow = self.table.select_columns([column]).with_format("arrow")[:]
        return (
            require("pyarrow.compute", extra="huggingface").list_value_length(arrow[column]).to_numpy().astype(np.int64)
        )

    def _is_text(self, column: str) -> bool:
        return getattr(self.table.features[column], "dtype", None) in ("string", "large_string")

    def order_lengths(self) -> np.ndarray | None:
        if self.sorting_seq_len_column is None:
            return super().order_lengths()
        return np.asarray(self.table[self.sorting_seq_len_column])

    def read(self, indices: Indices) -> Examples:
        indices = as_array(indices)
        tags = self.seq_tags(indices)
        columns = sorted(set(self.columns.values()))
        streams: dict[str, list[np.ndarray]] = {name: [] for name in self.streams}
        if len(indices):
            rows = self.table.select_columns(columns).with_format(None)[indices.tolist()]
            for name, arrays in streams.items():
                for i, value in enumerate(rows[self.columns[name]]):
                    arrays.append(self._array(name, value, tags[i], int(indices[i])))
        return Examples(tags, streams)

    def _array(self, stream: str, value: Any, tag: str, index: int) -> np.ndarray:
        spec = self.streams[stream]
        where = f"HuggingFaceDataset, seq_tag {tag!r}, stream {stream!r}"
        if stream in self.audio:
            features = self.audio[stream]
            source = value["bytes"] if value.get("bytes") else Path(value["path"])
            rng = np.random.default_rng([self.seed, self.epoch, index]) if features.is_random else None
            return features(*read_audio(source, where), rng, tag)
        if isinstance(value, str) and spec.vocab is not None:
            rng = np.random.default_rng([self.seed, self.epoch, index, 1]) if spec.vocab.is_random else None
            try:
                value = spec.vocab.encode(value, rng)
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
        try:
            array = np.asarray(value, dtype=None if spec.dtype == "string" or len(np.shape(value)) == 0 else spec.dtype)
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: {error}") from error
        return checked_array(
            array.reshape([0 if n is None else n for n in spec.shape or ()]) if not array.size else array, spec, where
        )

    def at_epoch(self, epoch: int) -> Dataset:
        random = [f.is_random for f in self.audio.values()] + [
            s.vocab.is_random for s in self.streams.values() if s.vocab
        ]
        if epoch == self.epoch or not any(random):
            return self
        other = object.__new__(HuggingFaceDataset)
        other.__dict__.update(self.__dict__, epoch=epoch)
        return other


def _load(dataset: Any, split: str | None) -> Any:
    """The table: given, or loaded from disk."""
    library = require("datasets", extra="huggingface")
    if isinstance(dataset, str | Path):
        dataset = _load_folder(Path(dataset), library) if Path(dataset).is_dir() else _load_files([dataset], library)
    elif isinstance(dataset, Sequence):
        dataset = _load_files(list(dataset), library)
    if isinstance(dataset, Mapping):
        if split not in dataset:
            raise DataError(f"HuggingFaceDataset: split={split!r}{did_you_mean(str(split), dataset)}")
        dataset = dataset[split]
    if not isinstance(dataset, library.Dataset):
        raise DataError(
            f"HuggingFaceDataset: expected a data set of the datasets library, got {type(dataset).__name__}"
        )
    return dataset


def _load_folder(path: Path, library: Any) -> Any:
    try:
        return library.load_from_disk(str(path))
    except (FileNotFoundError, ValueError, OSError) as error:
        raise DataError(f"{path}: not a folder of save_to_disk: {error}") from error


def _load_files(files: Sequence[str | Path], library: Any) -> Any:
    kinds = {READERS.get(Path(file).suffix, "") for file in files}
    if "" in kinds or len(kinds) != 1:
        raise DataError(
            f"HuggingFaceDataset: {[str(f) for f in files]}: expected files of one kind: {', '.join(READERS)}"
        )
    for file in map(Path, files):
        if not file.is_file():
            raise DataError(f"{file}: no such file{nearest(file.name, (p.name for p in file.parent.glob('*')))}")
    kind = kinds.pop()
    names = [str(file) for file in files]
    options = {"sep": "\t"} if Path(names[0]).suffix == ".tsv" else {}
    if kind == "arrow":
        return library.concatenate_datasets([library.Dataset.from_file(name) for name in names])
    reader = {
        "parquet": library.Dataset.from_parquet,
        "json": library.Dataset.from_json,
        "csv": library.Dataset.from_csv,
    }
    return reader[kind](names, **options)
