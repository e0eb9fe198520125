"""Sequences in HDF files of the streams layout (RETURNN's NextGenHDFDataset): one data set per sequence and stream.

`/seq_names` are the tags; `/streams/NAME/data/TAG` (a "/" in the tag is stored as a backslash) are the numbers, and the
attribute `parser` of `/streams/NAME` says what they are: `feature_sequence` (T, F), `sparse` (T,) class indices, or
`segment_alignment` (S, 2): a class index and its number of frames, here read as one class index for every frame.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.dataset import DataError, Dataset, Examples
from returnn_hydra.data.hdf import PathLike, expand_files
from returnn_hydra.data.hdf_file import damage_as_error, decode_tag, has_member, member, open_hdf

PARSERS = ("feature_sequence", "sparse", "segment_alignment")


class HDFStreamsDataset(Dataset):
    """One corpus out of one or several files of the streams layout.

    Raises:
        DataError: a file is missing, damaged or of another layout; streams that differ between the files; a tag twice.
    """

    def __init__(self, files: PathLike | Sequence[PathLike], *, input_stream: str | None = None) -> None:
        """
        Args:
            files: paths, patterns ("train.*.hdf"), or text files with one path in every line.
            input_stream: the stream that is called `data` here; the others keep their names.
        """
        self.files = expand_files(files)
        self.input_stream = input_stream
        self._build_index()

    def _build_index(self) -> None:
        self._tags: list[str] = []
        self._file_of: list[int] = []
        self.labels: dict[str, list[str]] = {}
        """Stream to the names of its classes or features, where the first file has them."""
        specs: dict[str, TensorSpec] | None = None
        for number, path in enumerate(self.files):
            with damage_as_error(path), open_hdf(path) as file:
                self._parsers, found = self._read_streams(file, path)
                names = [decode_tag(name) for name in member(file, "seq_names", path)[...].tolist()]
            if specs is not None and specs != found:
                raise DataError(f"{path}: streams {found}, expected {specs} as in {self.files[0]}")
            specs = found
            self._tags += names
            self._file_of += [number] * len(names)
        self.streams: Mapping[str, TensorSpec] = specs or {}
        if len(set(self._tags)) != len(self._tags):
            seen: set[str] = set()
            tag = next(tag for tag in self._tags if tag in seen or seen.add(tag))  # type: ignore[func-returns-value]
            raise DataError(f"{', '.join(map(str, self.files))}: seq_tag {tag!r} comes twice")
        self._lengths: dict[str, np.ndarray] = {}
        self._open: dict[int, h5py.File] = {}
        self._open_pid = os.getpid()

    def _read_streams(self, file: h5py.File, path: Path) -> tuple[dict[str, tuple[str, str]], dict[str, TensorSpec]]:
        """Our name to (name in the file, parser), and to the spec."""
        group = member(file, "streams", path)
        if self.input_stream is not None and self.input_stream not in group:
            known = ", ".join(group)
            raise DataError(f"{path}: input_stream={self.input_stream!r}: no such stream (there is: {known})")
        parsers, specs = {}, {}
        for name in sorted(group):
            stream = member(group, name, path)
            parser = decode_tag(stream.attrs.get("parser", ""))
            if parser not in PARSERS:
                raise DataError(f"{path}, stream {name!r}: parser {parser!r}, expected one of {', '.join(PARSERS)}")
            ours = "data" if name == self.input_stream else name
            parsers[ours] = (name, parser)
            labels = []
            if has_member(stream, "feature_names"):
                labels = [decode_tag(label) for label in member(stream, "feature_names", path)[...].tolist()]
            if labels:
                self.labels.setdefault(ours, labels)
            where = f"{path}, stream {name!r}"
            specs[ours] = self._spec(member(stream, "data", path), parser, len(labels) or None, where)
        return parsers, specs

    def _spec(self, group: h5py.Group, parser: str, dim: int | None, where: str) -> TensorSpec:
        first = next(iter(group), None)
        if first is None:
            raise DataError(f"{where}: no sequences")
        numbers = group[first]
        if parser == "feature_sequence":
            if numbers.ndim != 2:
                text = f"sequence {_tag(first)!r} has the shape {numbers.shape}, expected (frames, features)"
                raise DataError(f"{where}: {text}")
            return TensorSpec(dim=numbers.shape[1], dtype=numbers.dtype.name)
        if numbers.dtype.kind not in "iu":
            text = f"sequence {_tag(first)!r} has values of type {numbers.dtype}, expected class indices"
            raise DataError(f"{where}: {text}")
        return TensorSpec(dim=dim, shape=(None,), sparse=dim is not None, dtype="int32")

    def __len__(self) -> int:
        return len(self._tags)

    def seq_tags(self, indices: Sequence[int] | np.ndarray) -> list[str]:
        return [self._tags[int(index)] for index in indices]

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        if stream not in self._lengths:
            lengths = np.empty(len(self), np.int64)
            for index in range(len(self)):
                numbers, parser = self._numbers(index, stream)
                lengths[index] = numbers[:, 1].sum() if parser == "segment_alignment" else numbers.shape[0]
            self._lengths[stream] = lengths
        return self._lengths[stream]

    def read(self, indices: Sequence[int] | np.ndarray) -> Examples:
        streams = {name: [self._array(int(index), name) for index in indices] for name in self.streams}
        return Examples(self.seq_tags(indices), streams)

    def _array(self, index: int, stream: str) -> np.ndarray:
        numbers, parser = self._numbers(index, stream)
        with damage_as_error(self.files[self._file_of[index]], f", stream {stream!r}, sequence {self._tags[index]!r}"):
            array = numbers[...]
        if parser == "segment_alignment":
            array = np.repeat(array[:, 0], array[:, 1])
        return array if parser == "feature_sequence" else array.astype(np.int32)

    def _numbers(self, index: int, stream: str) -> tuple[Any, str]:
        """The data set of a sequence, and its parser. Every process opens its own file."""
        if self._open_pid != os.getpid():
            self._open, self._open_pid = {}, os.getpid()
        number, tag = self._file_of[index], self._tags[index]
        path = self.files[number]
        if number not in self._open:
            self._open[number] = open_hdf(path)
        name, parser = self._parsers[stream]
        stored = tag.replace("/", "\\")
        with damage_as_error(path, f", stream {stream!r}, sequence {tag!r}"):
            numbers = member(member(self._open[number], f"streams/{name}/data", path), stored, path)
            ndim = 1 if parser == "sparse" else 2
            if numbers.ndim != ndim or (parser == "segment_alignment" and numbers.shape[1] != 2):
                text = f"shape {numbers.shape} for parser {parser!r}"
                raise DataError(f"{path}, stream {stream!r}, sequence {tag!r}: {text}")
        return numbers, parser

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "input_stream": self.input_stream}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._build_index()


def _tag(stored: str) -> str:
    return stored.replace("\\", "/")
