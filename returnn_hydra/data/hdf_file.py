"""One HDF file in RETURNN's layout: what is in it, checked before anything is used.

All sequences stand one behind the other: `inputs` (the stream `data`) and `targets/data/<name>`, the frames of each
sequence in `seqLengths`, one column for every stream, their names in `seqTags`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.dataset import DataError

PER_SEQUENCE = "per_sequence"
"""Our writer's mark on a stream without time axis, which the layout stores as one frame for every sequence."""


class Storage(NamedTuple):
    """How the file holds a stream."""

    row_shape: tuple[int, ...]
    dtype: np.dtype
    chunk_rows: int
    """Rows that are stored together."""
    is_packed: bool
    """Compressed: reading is work."""


class HDFFile:
    """The index of a file: streams, lengths; tags when they are asked for.

    Raises:
        DataError: the file is missing, damaged, reaches into other files, or contradicts itself.
    """

    def __init__(self, path: str | os.PathLike[str], per_sequence: Sequence[str] = ()) -> None:
        """
        Args:
            per_sequence: streams with one frame in every sequence, which then have no time axis. (Text always, and
                those that our writer has marked.)
        """
        self.path = Path(path)
        with damage_as_error(self.path):
            self._read_index(per_sequence)

    def _read_index(self, per_sequence: Sequence[str]) -> None:
        with open_hdf(self.path) as file:
            self.datasets = _stream_paths(file, self.path)
            """Stream to the path of its numbers in the file."""
            if not self.datasets:
                raise DataError(
                    f"{self.path}: neither `inputs` nor `targets/data`: not an HDF file of RETURNN's layout"
                )
            self.specs = {name: _spec(file, self.path, name, path) for name, path in self.datasets.items()}
            self.labels = _labels(file, self.path, self.datasets)
            """Stream to the names of its classes, where the file has them."""
            self.num_rows = {name: int(member(file, path, self.path).shape[0]) for name, path in self.datasets.items()}
            self.storage = {name: _storage(member(file, path, self.path)) for name, path in self.datasets.items()}
            self.lengths = self._read_lengths(file)
            self._marked = {
                name for name, at in self.datasets.items() if PER_SEQUENCE in member(file, at, self.path).attrs
            }
            num_tags = member(file, "seqTags", self.path).shape[0]
        self.num_seqs = len(next(iter(self.lengths.values())))
        if num_tags != self.num_seqs:
            raise DataError(f"{self.path}: {num_tags} seqTags, but seqLengths of {self.num_seqs} sequences")
        self._drop_time_axes(per_sequence)

    def _read_lengths(self, file: h5py.File) -> dict[str, np.ndarray]:
        """Stream to (N,) int64 frames; they must add up to what is there."""
        table = member(file, "seqLengths", self.path)[...]
        columns = len(self.datasets)
        only_data = list(self.datasets) == ["data"]
        if table.dtype.kind not in "iu" or table.ndim not in (1, 2):
            raise DataError(
                f"{self.path}: seqLengths has the shape {table.shape} and {table.dtype}, expected integers (N, streams)"
            )
        if table.ndim == 1:  # very old files: one length for all streams
            table = np.repeat(table[:, None], columns, axis=1)
        if table.shape[1] != columns and not (only_data and table.shape[1] == 2):
            raise DataError(
                f"{self.path}: seqLengths has {table.shape[1]} columns, expected {columns}: {', '.join(self.datasets)}"
            )
        lengths = {name: table[:, column].astype(np.int64) for column, name in enumerate(self.datasets)}
        for name, values in lengths.items():
            if len(values) and values.min() < 0:
                seq = int(np.argmin(values))
                raise DataError(
                    f"{self.path}: sequence {self._tag(file, seq)!r}, stream {name!r}: {values[seq]} frames"
                )
            if int(values.sum()) != self.num_rows[name]:
                raise DataError(
                    f"{self.path}, stream {name!r}: the lengths of the {len(values)} sequences add up to "
                    f"{int(values.sum())} frames, but `{self.datasets[name]}` has {self.num_rows[name]}"
                )
        return lengths

    def _tag(self, file: h5py.File, seq: int) -> str:
        return decode_tag(np.asarray(member(file, "seqTags", self.path)[seq]).item())

    def _drop_time_axes(self, per_sequence: Sequence[str]) -> None:
        for name in per_sequence:
            if name not in self.specs:
                raise DataError(
                    f"{self.path}: per_sequence={name!r}: no such stream (there is: {', '.join(self.specs)})"
                )
        for name, spec in self.specs.items():
            more = np.nonzero(self.lengths[name] != 1)[0]
            if len(more) and name in per_sequence:
                seq = int(more[0])
                with open_hdf(self.path) as file:
                    tag = self._tag(file, seq)
                raise DataError(
                    f"{self.path}, stream {name!r}: per_sequence, but {tag!r} has {self.lengths[name][seq]} frames"
                )
            if name in per_sequence or (not len(more) and (spec.dtype == "string" or name in self._marked)):
                self.specs[name] = replace(spec, shape=(spec.shape or ())[1:])

    def num_bytes(self, name: str) -> int:
        """Size of a stream in memory."""
        stored = self.storage[name]
        return int(self.num_rows[name] * stored.dtype.itemsize * np.prod(stored.row_shape, dtype=np.int64))

    def read_tags(self) -> np.ndarray:
        """(N,) tags as UTF-8 bytes (one compact array, which processes can share)."""
        with damage_as_error(self.path), open_hdf(self.path) as file:
            tags = member(file, "seqTags", self.path)[...]
        names = [tag.split(b"\0")[0] if b"\0" in tag else tag for tag in tags.tolist()]
        return np.array(names, dtype=np.bytes_) if names else np.zeros(0, "S1")


@contextlib.contextmanager
def damage_as_error(path: Path, where: str = "") -> Iterator[None]:
    """What h5py raises over a damaged file (errors of many kinds) becomes a DataError that names the file."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, MemoryError) as error:
        text = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}{where}: can't be read, the file seems to be damaged ({text})") from error


def open_hdf(path: Path, **options: Any) -> h5py.File:
    """Open for reading.

    Raises:
        DataError: missing, cut off, or not an HDF file.
    """
    try:
        return h5py.File(path, "r", **options)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: not a readable HDF file, perhaps cut off or still being written ({error})") from error


def member(group: h5py.Group, path: str, where: Path) -> Any:
    """A group or data set of the file itself.

    Raises:
        DataError: it is not there, or it is a link or storage that reaches into another file.
    """
    found: Any = group
    for name in path.split("/"):
        link = found.get(name, getlink=True) if isinstance(found, h5py.Group) else None
        if link is None:
            raise DataError(f"{where}: `{path}` is missing")
        if not isinstance(link, h5py.HardLink):
            raise DataError(f"{where}: `{path}` is a link ({type(link).__name__}); links are not followed")
        found = found[name]
    if isinstance(found, h5py.Dataset) and (found.external or found.is_virtual):
        raise DataError(f"{where}: `{path}` is stored in another file, which is not followed")
    return found


def has_member(group: h5py.Group, path: str) -> bool:
    """Whether there is something of this name; also a link, which `member` then refuses."""
    found: Any = group
    for name in path.split("/"):
        link = found.get(name, getlink=True) if isinstance(found, h5py.Group) else None
        if not isinstance(link, h5py.HardLink):
            return link is not None
        found = found[name]
    return True


def decode_tag(tag: bytes | str) -> str:
    """A tag or label as text; fixed-width strings may be padded with NUL."""
    return (tag.decode("utf-8", "replace") if isinstance(tag, bytes) else tag).split("\0")[0]


def _stream_paths(file: h5py.File, path: Path) -> dict[str, str]:
    """Stream to path, in the order of the columns of seqLengths."""
    paths = {}
    if has_member(file, "inputs"):
        paths["data"] = "inputs"
    if has_member(file, "targets/data"):
        names = set(member(file, "targets/data", path))
        if has_member(file, "targets/size"):
            names |= set(member(file, "targets/size", path).attrs)
        if "data" in names and paths:
            raise DataError(f"{path}: both `inputs` and `targets/data/data`: two streams of the name 'data'")
        paths.update({name: f"targets/data/{name}" for name in sorted(names)})
    for name, place in paths.items():
        if not isinstance(member(file, place, path), h5py.Dataset):
            raise DataError(f"{path}, stream {name!r}: `{place}` is not a data set")
    return paths


def _spec(file: h5py.File, path: Path, name: str, place: str) -> TensorSpec:
    dataset = member(file, place, path)
    if dataset.ndim == 0:
        raise DataError(f"{path}, stream {name!r}: `{place}` has no frames axis")
    shape = (None, *dataset.shape[1:])
    if dataset.dtype.kind in "OSU":
        if h5py.check_string_dtype(dataset.dtype) is None:
            raise DataError(
                f"{path}, stream {name!r}: `{place}` has values of type {dataset.dtype}, expected numbers or text"
            )
        return TensorSpec(shape=shape, dtype="string")
    if dataset.dtype.kind not in "iufb":
        raise DataError(
            f"{path}, stream {name!r}: `{place}` has values of type {dataset.dtype}, expected numbers or text"
        )
    dtype = dataset.dtype.name
    if dataset.ndim > 1 or dataset.dtype.kind not in "iu":
        return TensorSpec(shape=shape, dtype=dtype)
    dim = _num_classes(file, path, name)
    if dim is not None and dim <= 1:  # how the writer stores plain integers, as in `sizes`
        return TensorSpec(shape=shape, dtype=dtype)
    return TensorSpec(dim=dim, shape=shape, sparse=True, dtype=dtype)


def _num_classes(file: h5py.File, path: Path, name: str) -> int | None:
    if name == "data":
        size = file.attrs.get("inputPattSize")
    else:
        size = member(file, "targets/size", path).attrs.get(name) if has_member(file, "targets/size") else None
    return None if size is None else int(np.ravel(size)[0])


def _labels(file: h5py.File, path: Path, streams: Sequence[str] | dict[str, str]) -> dict[str, list[str]]:
    labels = {}
    for name in streams:
        place = "labels" if name == "data" else f"targets/labels/{name}"
        if has_member(file, place):
            names = [decode_tag(label) for label in member(file, place, path)[...].tolist()]
            if names and names != ["dummy-label"]:
                labels[name] = names
    return labels


def _storage(dataset: h5py.Dataset) -> Storage:
    properties = dataset.id.get_create_plist()
    filters = {properties.get_filter(i)[0] for i in range(properties.get_nfilters())}
    cheap = {h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_SHUFFLE}
    return Storage(dataset.shape[1:], dataset.dtype, dataset.chunks[0] if dataset.chunks else 1, not filters <= cheap)
