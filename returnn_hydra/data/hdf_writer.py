"""Writing sequences to an HDF file of RETURNN's layout, which RETURNN's HDFDataset and ours read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.hdf_file import PER_SEQUENCE
from returnn_hydra.data.hdf_target import HDFTarget

CHUNK_BYTES = 64 << 10
"""A chunk holds whole rows of about so many bytes: small enough for single sequences, large enough for long reads."""
BUFFER_BYTES = 4 << 20
"""Written at once."""
SIZES = "sizes"
"""RETURNN's name for the sizes of the axes of sequences with several variable axes."""


class HDFWriter:
    """Writes sequence after sequence; the file gets its name when it is complete.

    Until `close` everything goes to a temporary file in the same folder; after an exception (as a context manager) or
    `abort` nothing remains. The numbers have a checksum in every chunk (fletcher32), so that a reader notices damage.

    Raises:
        DataError: the file exists (and not `overwrite`), or a sequence does not fit to those before.
        OSError: of every method: the disk refused, now or before; nothing remains.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        specs: Mapping[str, TensorSpec] | None = None,
        *,
        input_stream: str = "data",
        labels: Mapping[str, Sequence[str]] | None = None,
        overwrite: bool = False,
        compression: str | None = None,
    ) -> None:
        """
        Args:
            specs: what the streams are; default: as the first sequence looks, with integers as plain numbers.
            input_stream: the stream that is stored as `inputs`, and read as `data`.
            labels: by stream, the names of the classes; default: of the spec's vocabulary.
            compression: "gzip", "lzf"; smaller, but slower to read.
        """
        self.path = Path(path)
        self.input_stream = input_stream
        self.labels = dict(labels or {})
        self.overwrite = overwrite
        self.compression = compression
        self.specs: dict[str, TensorSpec] | None = None
        self._refuse_existing()
        self._target = HDFTarget(self.path)
        self._file: h5py.File | None = None
        self._tags: dict[str, int] = {}
        self._lengths: dict[str, list[int]] = {}
        self._buffers: dict[str, list[np.ndarray]] = {}
        self._buffered = 0
        with self._or_abort():
            self._file = h5py.File(self._target, "w")
            if specs is not None:
                self._create_streams(dict(specs))

    @contextlib.contextmanager
    def _or_abort(self) -> Iterator[None]:
        """After an error of the disk nothing remains."""
        try:
            with self._target.checked():
                yield
        except OSError:
            self.abort()
            raise

    def _refuse_existing(self) -> None:
        if self.path.exists() and not self.overwrite:
            raise DataError(f"{self.path}: the file exists; overwrite=true replaces it")
        if not self.path.parent.is_dir():
            raise DataError(f"{self.path}: there is no folder {self.path.parent}")

    def write(self, seq_tag: str, streams: Mapping[str, Any]) -> None:
        """Add one sequence.

        Args:
            streams: stream name to the array of the sequence, (T, ...), or without T for streams without a time axis;
                text as str.

        Raises:
            DataError: the tag was there before; a stream is missing, unknown, or of another shape or type.
        """
        if self._file is None:
            raise DataError(f"{self.path}: sequence {seq_tag!r} comes after the file was closed")
        arrays = {name: _as_array(value) for name, value in streams.items()}
        if self.specs is None:
            self._create_streams({name: guess_spec(array) for name, array in arrays.items()})
        assert self.specs is not None
        if seq_tag in self._tags:
            raise DataError(f"{self.path}: sequence {seq_tag!r} is written a second time")
        if arrays.keys() != self.specs.keys():
            raise DataError(
                f"{self.path}, sequence {seq_tag!r}: streams {sorted(arrays)}, expected {sorted(self.specs)}"
            )
        where = f"{self.path}, sequence {seq_tag!r}"
        rows = {name: to_rows(array, self.specs[name], f"{where}, stream {name!r}") for name, array in arrays.items()}
        if SIZES in self._lengths and SIZES not in self.specs:
            shape = arrays[self.input_stream].shape
            variable = _variable_axes(self.specs[self.input_stream])
            rows[SIZES] = np.array([shape[axis] for axis in variable], np.int32)
        self._tags[seq_tag] = len(self._tags)
        for name, array in rows.items():
            self._lengths[name].append(len(array))
            self._buffers[name].append(array)
            self._buffered += array.nbytes
        if self._buffered >= BUFFER_BYTES:
            with self._or_abort():
                self._flush()

    def _create_streams(self, specs: dict[str, TensorSpec]) -> None:
        assert self._file is not None
        self.specs = specs
        stored = dict(specs)
        for name, spec in specs.items():
            if len(_variable_axes(spec)) > 1:
                if name != self.input_stream or SIZES in specs:
                    raise DataError(
                        f"{self.path}, stream {name!r}: only {self.input_stream!r} can have several variable axes"
                    )
                stored[SIZES] = TensorSpec(shape=(None,), dtype="int32")
        if "data" in specs and self.input_stream != "data" and self.input_stream in specs:
            raise DataError(f"{self.path}: the stream 'data' besides the input stream {self.input_stream!r}")
        names = sorted(stored, key=lambda name: (name != self.input_stream, name))
        for name in names:
            self._create_stream(name, stored[name])
        self._lengths = {name: [] for name in names}
        self._buffers = {name: [] for name in names}

    def _create_stream(self, name: str, spec: TensorSpec) -> None:
        """The data set of a stream, without rows."""
        assert self._file is not None
        row_shape = _row_shape(spec)
        dtype = h5py.string_dtype() if spec.dtype == "string" else np.dtype(spec.dtype)
        row_bytes = max(int(dtype.itemsize * np.prod(row_shape, dtype=np.int64)), 1)
        dataset = self._file.create_dataset(
            self._place(name),
            shape=(0, *row_shape),
            maxshape=(None, *row_shape),
            dtype=dtype,
            chunks=(max(CHUNK_BYTES // row_bytes, 1), *row_shape),
            fletcher32=spec.dtype != "string",
            compression=None if spec.dtype == "string" else self.compression,
        )
        if not spec.has_time:
            dataset.attrs[PER_SEQUENCE] = True
        labels = self.labels.get(name)
        if labels is None and spec.vocab is not None:
            labels = spec.vocab.labels
        if name == self.input_stream:
            self._file.attrs["inputPattSize"] = self._file.attrs["numLabels"] = spec.dim or 1
            self._file.create_dataset("labels", data=_fixed_width(labels or [], 5))
        else:
            self._file.create_dataset(f"targets/labels/{name}", data=_fixed_width(labels or ["dummy-label"]))
            size = self._file.require_group("targets/size")
            size.attrs[name] = np.array([spec.dim or 1, 1 + len(row_shape)], np.int64)

    def _place(self, name: str) -> str:
        return "inputs" if name == self.input_stream else f"targets/data/{name}"

    def _flush(self) -> None:
        assert self._file is not None
        for name, arrays in self._buffers.items():
            if arrays:
                dataset = self._file[self._place(name)]
                rows = np.concatenate(arrays)
                start = dataset.shape[0]
                dataset.resize(start + len(rows), axis=0)
                dataset[start:] = rows
                arrays.clear()
        self._buffered = 0

    def close(self) -> None:
        """Complete the file and give it its name.

        Raises:
            DataError: there is nothing to write; another process has written the file meanwhile.
        """
        if self._file is None:
            return
        try:
            if self.specs is None:
                raise DataError(f"{self.path}: no sequence was written, and no specs say what the streams are")
            with self._target.checked():
                self._flush()
                self._finish(self._file)
                self._file.close()
            self._file = None
            self._refuse_existing()
            self._target.commit()
        except BaseException:
            self.abort()
            raise

    def _finish(self, file: h5py.File) -> None:
        """The index: tags, lengths, counts."""
        lengths = np.array(list(self._lengths.values()), np.int32).T.reshape(len(self._tags), len(self._lengths))
        if self.input_stream in self._lengths:
            num_frames = int(lengths[:, 0].sum())
            if lengths.shape[1] == 1:  # RETURNN always wants a second column
                lengths = np.hstack([lengths, np.zeros_like(lengths)])
        else:
            num_frames = 0
            file.attrs["inputPattSize"] = file.attrs["numLabels"] = 1
        file.create_dataset("seqLengths", data=lengths)
        file.create_dataset("seqTags", data=_fixed_width(list(self._tags)))
        file.attrs.update({"numDims": 1, "numTimesteps": num_frames, "numSeqs": len(self._tags)})

    def abort(self) -> None:
        """Leave no file."""
        if self._file is not None:
            with contextlib.suppress(Exception):  # after an error it can't be completed
                self._file.close()
            self._file = None
        self._target.discard()

    def __enter__(self) -> HDFWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def guess_spec(array: np.ndarray) -> TensorSpec:
    """What a stream with this first sequence is: the first axis is the time, the others have fixed sizes."""
    if array.dtype.kind == "O":
        return TensorSpec(shape=(None,) * array.ndim, dtype="string")
    if array.ndim == 0:
        return TensorSpec(shape=(), dtype=array.dtype.name)
    return TensorSpec(shape=(None, *array.shape[1:]), dtype=array.dtype.name)


def to_rows(array: np.ndarray, spec: TensorSpec, where: str) -> np.ndarray:
    """The rows that are stored for a sequence: one without a time axis, all frames of several variable axes in a row.

    Raises:
        DataError: the array is not what the spec says.
    """
    shape = spec.shape or ()
    fits = array.ndim == len(shape) and all(a is None or a == b for a, b in zip(shape, array.shape, strict=True))
    if not fits:
        raise DataError(f"{where}: shape {array.shape}, expected {shape} (None: any)")
    if (array.dtype.kind == "O") != (spec.dtype == "string"):
        raise DataError(f"{where}: values of type {array.dtype}, expected {spec.dtype}")
    if spec.dtype != "string":
        dtype = np.dtype(spec.dtype)
        if array.size and not np.can_cast(array.dtype, dtype, "same_kind"):
            raise DataError(f"{where}: values of type {array.dtype}, expected {spec.dtype}")
        cast = array.astype(dtype)
        if dtype.kind in "iu" and not np.array_equal(cast, array):
            raise DataError(f"{where}: values from {array.min()} to {array.max()} do not fit into {dtype}")
        array = cast
    row_shape = _row_shape(spec)
    return array.reshape(-1, *row_shape) if array.size or not row_shape else np.zeros((0, *row_shape), array.dtype)


def _as_array(value: Any) -> np.ndarray:
    """Numbers as they are, text as an array of str objects."""
    array = np.asarray(value)
    return array.astype(object) if array.dtype.kind in "US" else array


def _variable_axes(spec: TensorSpec) -> list[int]:
    return [axis for axis, size in enumerate(spec.shape or ()) if size is None]


def _row_shape(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of one frame."""
    shape = spec.shape or ()
    variable = _variable_axes(spec)
    if variable != list(range(len(variable))):
        raise DataError(f"shape {shape}: the axes of variable size must be the first ones")
    return tuple(size for size in shape if size is not None)


def _fixed_width(texts: Sequence[str], least: int = 1) -> np.ndarray:
    """UTF-8 bytes, all as wide as the longest."""
    encoded = [text.encode("utf-8") for text in texts]
    return np.array(encoded, f"S{max([least, *map(len, encoded)])}")
