"""Sequences in HDF files of RETURNN's layout (HDFDataset, SimpleHDFWriter)."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.checks import stream_spec
from returnn_hydra.data.collate import collate
from returnn_hydra.data.dataset import DataError, Dataset, Examples
from returnn_hydra.data.files import nearest_file
from returnn_hydra.data.hdf_file import HDFFile, damage_as_error, decode_tag, member, open_hdf
from returnn_hydra.data.hdf_rows import RowCache, Source
from returnn_hydra.data.memory import available_memory

PathLike = str | os.PathLike[str]
CHUNK_CACHE_BYTES = 32 << 20
"""HDF5's own cache of unpacked chunks, by data set."""


class HDFDataset(Dataset):
    """One corpus out of one or several HDF files.

    `inputs` is the stream `data`, every `targets/data/<name>` a stream of that name. Text streams with one string for
    every sequence have no time axis.

    Raises:
        DataError: a file is missing, damaged, contradicts itself or the other files; names file, sequence and stream.
    """

    def __init__(
        self,
        files: PathLike | Sequence[PathLike],
        *,
        cache: str = "auto",
        cache_fraction: float = 0.3,
        per_sequence: Sequence[str] = (),
        allow_duplicate_tags: bool = False,
    ) -> None:
        """
        Args:
            files: paths, patterns ("train.*.hdf"), or text files with one path in every line.
            cache: keep what was read in memory: `ram`; `none`; `auto`: if all is less than `cache_fraction` of the free
                memory. (What the page cache of the system holds counts as free.)
            per_sequence: streams with one frame in every sequence, to be read without time axis, as one value for the
                sequence. (Text is always read so, and what our writer wrote so.)
            allow_duplicate_tags: sequences may share a tag (outputs can then not be told apart).
        """
        if cache not in ("auto", "none", "ram"):
            raise ValueError(f"cache={cache!r}: expected auto, none or ram")
        self.files = expand_files(files)
        self.cache = cache
        self.cache_fraction = cache_fraction
        self.per_sequence = tuple(per_sequence)
        self.allow_duplicate_tags = allow_duplicate_tags
        self.read_streams: tuple[str, ...] | None = None
        """What `read` gives; None: all streams."""
        self._build_index()

    def _build_index(self) -> None:
        parts = [HDFFile(path, self.per_sequence) for path in self.files]
        first = parts[0]
        for part in parts[1:]:
            _check_same_streams(first, part)
        self.streams: Mapping[str, TensorSpec] = _joined_specs(parts)
        self.labels = first.labels
        """Stream to the names of its classes, where the first file has them."""
        self._parts = parts
        self._bounds = np.cumsum([0, *(part.num_seqs for part in parts)])
        """Sequences of file i: bounds[i] .. bounds[i+1]-1."""
        self._lengths = {name: np.concatenate([part.lengths[name] for part in parts]) for name in self.streams}
        self._starts = {
            name: np.concatenate([np.cumsum(part.lengths[name]) - part.lengths[name] for part in parts])
            for name in self.streams
        }
        """First row of every sequence in its file."""
        for part in parts:
            part.lengths = {}
        self._tags: np.ndarray | None = None
        self._open: dict[int, h5py.File] = {}
        self._open_pid = os.getpid()
        self._sources: dict[tuple[int, str], Source] = {}
        self._caches: dict[tuple[int, str], RowCache] = self._make_caches()

    def _make_caches(self, shared: bool = False) -> dict[tuple[int, str], RowCache]:
        """Empty caches of all streams of numbers, if they are wanted and fit."""
        size = sum(part.num_bytes(name) for part in self._parts for name in self.streams)
        free = available_memory()
        if self.cache == "none" or (self.cache == "auto" and size > self.cache_fraction * free):
            return {}
        if size > free:
            needed = f"{size / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"
            raise DataError(f"{self.files[0]} ...: cache=ram needs {needed}; cache=none reads from the disk")
        caches = {}
        for i, part in enumerate(self._parts):
            for name, spec in self.streams.items():
                if spec.dtype != "string":
                    stored = part.storage[name]
                    rows = part.num_rows[name]
                    caches[i, name] = RowCache(rows, stored.row_shape, stored.dtype, stored.chunk_rows, shared)
        return caches

    def with_streams(self, names: Sequence[str]) -> HDFDataset:
        """The same files and the same cache, but `read` gives these streams only."""
        other = object.__new__(HDFDataset)
        other.__dict__.update(self.__dict__)
        other.read_streams = tuple(names)
        return other

    def share_memory(self) -> None:
        self._all_tags()  # else every process would read its own
        self._caches = self._make_caches(shared=True)

    @property
    def is_block_copy(self) -> bool:
        names = self.streams if self.read_streams is None else self.read_streams
        keys = [(file, name) for file in range(len(self._parts)) for name in names]
        return all(
            key in self._caches
            and (not self._parts[key[0]].storage[key[1]].is_packed or bool(self._caches[key].loaded.all()))
            for key in keys
        )

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def seq_tags(self, indices: Sequence[int] | np.ndarray) -> list[str]:
        return [tag.decode("utf-8", "replace") for tag in self._all_tags()[np.asarray(indices, np.int64)].tolist()]

    def _all_tags(self) -> np.ndarray:
        """(N,) bytes."""
        if self._tags is None:
            self._tags = self._read_tags()
        return self._tags

    def _read_tags(self) -> np.ndarray:
        tags = np.concatenate([part.read_tags() for part in self._parts])
        if not self.allow_duplicate_tags and len(tags) > 1:
            order = np.argsort(tags, kind="stable")
            same = np.nonzero(tags[order[1:]] == tags[order[:-1]])[0]
            if len(same):
                a, b = sorted((int(order[same[0]]), int(order[same[0] + 1])))
                raise DataError(
                    f"duplicate seq_tag {decode_tag(tags[a])!r}: sequence {a} ({self._file_of(a)}) and sequence {b} "
                    f"({self._file_of(b)}); allow_duplicate_tags=true reads them all the same"
                )
        return tags

    def file_of(self, seq_tag: str) -> str | None:
        found = np.nonzero(self._all_tags() == seq_tag.encode())[0]
        return str(self._file_of(int(found[0]))) if len(found) else None

    def _file_of(self, index: int) -> Path:
        return self._parts[int(np.searchsorted(self._bounds, index, "right")) - 1].path

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        return self._lengths[stream] if stream_spec(self, stream).has_time else None

    def read(self, indices: Sequence[int] | np.ndarray) -> Examples:
        wanted = np.asarray(indices, np.int64)
        tags = self.seq_tags(wanted)
        names = self.streams if self.read_streams is None else self.read_streams
        if len(self._parts) == 1:
            return Examples(tags, {name: self._read_stream(0, name, wanted, tags) for name in names})
        files = np.searchsorted(self._bounds, wanted, "right") - 1
        streams = {}
        for name in names:
            arrays: list[Any] = [None] * len(wanted)
            for file in np.unique(files).tolist():
                positions = np.nonzero(files == file)[0]
                parts = self._read_stream(file, name, wanted[positions], [tags[i] for i in positions.tolist()])
                for position, array in zip(positions.tolist(), parts, strict=True):
                    arrays[position] = array
            streams[name] = arrays
        return Examples(tags, streams)

    def _read_stream(self, file: int, name: str, indices: np.ndarray, tags: Sequence[str]) -> list[np.ndarray]:
        """These sequences of one file."""
        if not len(indices):
            return []
        starts, lengths = self._starts[name][indices].tolist(), self._lengths[name][indices].tolist()
        where = f", stream {name!r}, {len(indices)} sequences from {tags[0]!r} on"
        with damage_as_error(self._parts[file].path, where):
            rows = self._source(file, name).read(starts, lengths, self._caches.get((file, name)))
        spec = self.streams[name]
        if rows and not rows[0].dtype.isnative:
            rows = [row.astype(row.dtype.newbyteorder("=")) for row in rows]
        if spec.dtype == "string":
            rows = [np.array([decode_tag(text) for text in row.tolist()], dtype=str) for row in rows]
        return rows if spec.has_time else [row.reshape(row.shape[1:]) for row in rows]

    def _source(self, file: int, name: str) -> Source:
        """The open data set of a stream. HDF5 handles do not survive a fork: every process opens its own."""
        if self._open_pid != os.getpid():
            self._open, self._sources, self._open_pid = {}, {}, os.getpid()
        if (file, name) not in self._sources:
            part = self._parts[file]
            if file not in self._open:
                self._open[file] = open_hdf(part.path, rdcc_nbytes=CHUNK_CACHE_BYTES, rdcc_nslots=10007)
            dataset = member(self._open[file], part.datasets[name], part.path)
            self._sources[file, name] = Source(str(part.path), dataset)
        return self._sources[file, name]

    def check(self, check_finite: bool = True) -> None:
        """Look at everything: tags, labels within their range, numbers that are numbers.

        Raises:
            DataError: the first thing that is wrong.
        """
        self.seq_tags([])
        for start in range(0, len(self), 256):
            examples = self.read(np.arange(start, min(start + 256, len(self))))
            collate(examples, self.streams, check_finite=check_finite)

    def close(self) -> None:
        """Close the files; reading opens them again."""
        if self._open_pid == os.getpid():
            for file in self._open.values():
                file.close()
        self._open, self._sources = {}, {}

    def __getstate__(self) -> dict[str, Any]:
        names = ("files", "cache", "cache_fraction", "per_sequence", "allow_duplicate_tags", "read_streams")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._build_index()


def expand_files(files: PathLike | Sequence[PathLike]) -> list[Path]:
    """The HDF files that are meant: paths, sorted matches of patterns, and the lines of text files.

    Raises:
        DataError: no such file, or nothing matches.
    """
    given = [files] if isinstance(files, (str, os.PathLike)) else list(files)
    paths: list[Path] = []
    for entry in given:
        text = os.fspath(entry)
        if glob.has_magic(text) and not os.path.exists(text):
            matches = sorted(glob.glob(text, recursive=True))
            if not matches:
                raise DataError(f"files={text!r}: no file matches")
            paths += map(Path, matches)
        elif os.path.isfile(text) and not h5py.is_hdf5(text) and _is_text(text):
            listed = [line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip()]
            paths += [_beside(Path(text), line) for line in listed]
        else:
            paths.append(Path(text))
    if not paths:
        raise DataError(f"files={files!r}: no HDF file is named there")
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such file{nearest_file(path)}")
    return paths


def _is_text(path: str) -> bool:
    """Lines of text, and not a damaged HDF file."""
    if path.endswith((".hdf", ".h5", ".hdf5")):
        return False
    with open(path, "rb") as file:
        return b"\0" not in file.read(4096)


def _beside(list_file: Path, line: str) -> Path:
    """A path in a list of files: as it is, else from the folder of the list."""
    path = Path(line)
    return path if path.exists() else list_file.parent / path


def _check_same_streams(first: HDFFile, other: HDFFile) -> None:
    for name, spec in first.specs.items():
        found = other.specs.get(name)
        if found is None:
            raise DataError(f"{other.path}: no stream {name!r}, which {first.path} has")
        facts = (other.storage[name].row_shape, found.dim, found.sparse, found.dtype)
        expected = (first.storage[name].row_shape, spec.dim, spec.sparse, spec.dtype)
        if facts != expected:
            words = "(shape behind the frames, dim, sparse, dtype)"
            raise DataError(f"{other.path}, stream {name!r}: {words} {facts}, expected {expected} as in {first.path}")


def _joined_specs(parts: Sequence[HDFFile]) -> dict[str, TensorSpec]:
    """The first file's streams; what has a time axis in any file has one."""
    specs = dict(parts[0].specs)
    for name in specs:
        timed = [part.specs[name] for part in parts if part.specs[name].has_time]
        specs[name] = timed[0] if timed else specs[name]
    return specs
