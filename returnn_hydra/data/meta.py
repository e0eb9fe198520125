"""Streams of several data sets, joined by sequence tag."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from returnn_hydra.data.arrays import AnythingDataset
from returnn_hydra.data.checks import did_you_mean, stream_spec
from returnn_hydra.data.concat import all_tags
from returnn_hydra.data.dataset import DataError, Dataset, Examples
from returnn_hydra.data.files import PathLike, nearest, read_literal, read_pickle, read_tag_list
from returnn_hydra.data.views import ComposedDataset, Indices, as_array, renewed, select, tag_index


class MetaDataset(ComposedDataset):
    """Sequences whose streams are in several data sets, e.g. features in one and alignments in another.

    The sequences are those of the control data set: theirs are the tags, and theirs the lengths that orderings use.
        Every
    other data set must have them all, in any order, and may have more.

    Args:
        datasets: {name: data set}.
        data_map: {stream: [name of the data set, its stream]}.
        seq_order_control_dataset: name of the control data set; default: where the stream `data` comes from.
        seq_list_file: which sequences, and which belong together where the data sets name them differently. A list
            of tags (one per line, or .pkl) of the control data set, or {name: list} (.pkl, .json or Python literal),
            where the i-th tags of all lists are one sequence; or {name: file of a list}.

    Raises:
        DataError: a data set or stream that does not exist; a sequence is missing in one of the data sets.
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset],
        data_map: Mapping[str, Sequence[str]],
        seq_order_control_dataset: str | None = None,
        seq_list_file: PathLike | Mapping[str, PathLike] | None = None,
    ) -> None:
        self.data_map = {stream: _source(stream, source, datasets) for stream, source in data_map.items()}
        if not self.data_map:
            raise DataError("MetaDataset: data_map is empty")
        self.streams = {
            stream: stream_spec(datasets[name], source, f"data_map[{stream!r}]: data set {name!r}")
            for stream, (name, source) in self.data_map.items()
        }
        default = self.data_map.get("data", next(iter(self.data_map.values())))[0]
        self.control = seq_order_control_dataset or default
        if self.control not in datasets:
            raise DataError(
                f"seq_order_control_dataset={self.control!r} is no data set{did_you_mean(self.control, datasets)}"
            )
        used = {self.control, *(name for name, _ in self.data_map.values())}
        self.datasets = {name: dataset for name, dataset in datasets.items() if name in used}
        self.seq_list_file = seq_list_file
        self._wanted = set(self.streams)

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        """{name: index in that data set, for every sequence}."""
        lists = {} if self.seq_list_file is None else _read_tag_lists(self.seq_list_file, list(self.datasets))
        control_tags = all_tags(self.datasets[self.control])
        wanted = lists.get(self.control, control_tags)
        rows = {}
        for name, dataset in self.datasets.items():
            tags = control_tags if name == self.control else all_tags(dataset)
            if isinstance(dataset, AnythingDataset) and name != self.control and len(dataset):
                rows[name] = np.zeros(len(wanted), dtype=np.int64)
            else:
                rows[name] = self._positions(name, tags, lists.get(name, wanted))
        return rows

    def _positions(self, name: str, tags: list[str], wanted: list[str]) -> np.ndarray:
        if tags == wanted:
            return np.arange(len(tags))
        index = tag_index(tags, f"data set {name!r}")
        missing = [tag for tag in wanted if tag not in index]
        if missing:
            origin = f"data set {self.control!r}" if self.seq_list_file is None else f"{self.seq_list_file}"
            raise DataError(
                f"data set {name!r} lacks {len(missing)} of the {len(wanted)} sequences of {origin}, "
                f"e.g. seq_tag {missing[0]!r}{nearest(missing[0], index)}"
            )
        return np.array([index[tag] for tag in wanted], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._rows[self.control])

    def seq_tags(self, indices: Indices) -> list[str]:
        return self.datasets[self.control].seq_tags(self._rows[self.control][as_array(indices)])

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        stream_spec(self, stream)
        name, source = self.data_map[stream]
        return select(self.datasets[name].seq_lengths(source), self._rows[name])

    def order_lengths(self) -> np.ndarray | None:
        return select(self.datasets[self.control].order_lengths(), self._rows[self.control])

    def read(self, indices: Indices) -> Examples:
        indices = as_array(indices)
        wanted = {stream: source for stream, source in self.data_map.items() if stream in self._wanted}
        needed = {name for name, _ in wanted.values()}
        parts = {name: self.datasets[name].read(self._rows[name][indices]) for name in sorted(needed)}
        tags = parts[self.control].seq_tags if self.control in parts else self.seq_tags(indices)
        return Examples(tags, {stream: parts[name].streams[source] for stream, (name, source) in wanted.items()})

    def _inner(self) -> Iterable[Dataset]:
        return self.datasets.values()

    def with_streams(self, names: Sequence[str]) -> Dataset:
        own = {
            name: [s for stream, (n, s) in self.data_map.items() if n == name and stream in names]
            for name in self.datasets
        }
        datasets = {
            name: dataset.with_streams(own[name]) if own[name] else dataset for name, dataset in self.datasets.items()
        }
        return renewed(self, datasets=datasets, _wanted=set(names))

    def at_epoch(self, epoch: int) -> Dataset:
        datasets = {name: dataset.at_epoch(epoch) for name, dataset in self.datasets.items()}
        same = all(datasets[name] is self.datasets[name] for name in datasets)
        return self if same else renewed(self, datasets=datasets)


def _source(stream: str, source: Sequence[str], datasets: Mapping[str, Dataset]) -> tuple[str, str]:
    if isinstance(source, str) or len(source) != 2:
        raise DataError(f"data_map[{stream!r}]: expected [name of a data set, its stream], got {source!r}")
    if source[0] not in datasets:
        raise DataError(f"data_map[{stream!r}]: no data set {source[0]!r}{did_you_mean(source[0], datasets)}")
    return source[0], source[1]


def _read_tag_lists(source: PathLike | Mapping[str, PathLike], names: list[str]) -> dict[str, list[str]]:
    """{name of the data set: tags}, lists of the same length."""
    if isinstance(source, Mapping):
        lists = {name: read_tag_list(path) for name, path in source.items()}
    else:
        value = _read_tags_or_lists(source)
        lists = value if isinstance(value, dict) else dict.fromkeys(names, value)
    if missing := [name for name in names if name not in lists]:
        raise DataError(f"{source}: no list for the data set {missing[0]!r}{did_you_mean(missing[0], lists)}")
    sizes = {name: len(lists[name]) for name in names}
    if len(set(sizes.values())) > 1:
        raise DataError(f"{source}: the lists must be of one length, got {sizes}")
    return {name: lists[name] for name in names}


def _read_tags_or_lists(path: PathLike) -> list[str] | dict[str, list[str]]:
    name = Path(path).name.removesuffix(".gz")
    if not name.endswith((".pkl", ".json", ".py")):
        return read_tag_list(path)
    value = read_pickle(path) if name.endswith(".pkl") else read_literal(path)
    lists = list(value.values()) if isinstance(value, dict) else [value]
    if not all(isinstance(tags, list) and all(isinstance(tag, str) for tag in tags) for tags in lists):
        raise DataError(f"{path}: expected a list of sequence tags or {{data set: list}}, got {type(value).__name__}")
    return value
