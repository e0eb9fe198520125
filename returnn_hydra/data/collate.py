"""Examples to a padded batch, checked against the streams' descriptions.

Legend: B sequences, T frames of the longest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.data.dataset import DataError, Examples, wrong_sequence

TORCH_DTYPES = {"uint16": "int32", "uint32": "int64"}
"""numpy types that torch does little with, and what their streams become."""


def collate(
    examples: Examples,
    specs: Mapping[str, TensorSpec],
    epoch: int = 1,
    starts: Mapping[str, np.ndarray] | None = None,
    ends: Mapping[str, np.ndarray] | None = None,
    check_finite: bool = False,
) -> Batch:
    """Pad the streams of `specs` with zeros to the longest sequence.

    Args:
        starts, ends: by stream, the frames of each sequence that are used (chunking).
        check_finite: look for NaN and infinity, at the price of a pass over the data.

    Raises:
        DataError: a stream is missing, or a sequence is not what the spec says.
    """
    tags = examples.seq_tags
    tensors: dict[str, Tensor | np.ndarray] = {}
    lengths: dict[str, Tensor] = {}
    for name, spec in specs.items():
        arrays = examples.streams.get(name)
        if arrays is None:
            raise DataError(f"stream {name!r}: the data has no such stream (it has: {', '.join(examples.streams)})")
        if starts and ends and name in starts:
            arrays = [array[a:b] for array, a, b in zip(arrays, starts[name], ends[name], strict=True)]
        check_arrays(name, spec, arrays, tags)
        if spec.dtype == "string":
            tensors[name] = _pad_text(spec, arrays)
        else:
            padded = _pad(name, spec, arrays, tags)
            check_values(name, spec, padded, arrays, tags, check_finite)
            tensors[name] = torch.from_numpy(padded)
        axis = spec.time_axis
        if axis is not None:
            lengths[name] = torch.from_numpy(np.array([array.shape[axis] for array in arrays], dtype=np.int64))
    for name, spec in specs.items():
        if spec.same_length_as in lengths and name in lengths:
            _check_same_length(name, str(spec.same_length_as), lengths, tags)
    return Batch(tensors, lengths, list(tags), epoch)


def _wrong(seq_tag: str, stream: str, what: str) -> DataError:
    return wrong_sequence(seq_tag, f"sequence {seq_tag!r}, stream {stream!r}: {what}")


def torch_dtype(spec: TensorSpec) -> np.dtype:
    """The numpy dtype of the stream's tensor."""
    return np.dtype(TORCH_DTYPES.get(str(spec.dtype), spec.dtype))


def check_arrays(name: str, spec: TensorSpec, arrays: Sequence[np.ndarray], tags: Sequence[str]) -> None:
    """The kind of numbers and the shape of every sequence.

    Raises:
        DataError: they differ from the spec.
    """
    assert spec.shape is not None
    first_varies = spec.time_axis == 0
    previous: tuple[object, int, tuple[int, ...]] | None = None
    for array, tag in zip(arrays, tags, strict=True):
        facts = (array.dtype, array.ndim, array.shape[1:] if first_varies else array.shape)
        if facts == previous:
            continue
        previous = facts
        if len(array.shape) != len(spec.shape) or any(
            want is not None and want != found for want, found in zip(spec.shape, array.shape, strict=True)
        ):
            raise _wrong(tag, name, f"shape {array.shape}, expected {_shape_text(spec)}")
        text = array.dtype.kind in "OUS"
        if text != (spec.dtype == "string") or not (text or np.can_cast(array.dtype, torch_dtype(spec), "same_kind")):
            raise _wrong(tag, name, f"values of type {array.dtype}, expected {spec.dtype}")


def _shape_text(spec: TensorSpec) -> str:
    assert spec.shape is not None
    text = ", ".join("any" if size is None else str(size) for size in spec.shape)
    return f"({text}{',' if len(spec.shape) == 1 else ''})"


def _pad(name: str, spec: TensorSpec, arrays: Sequence[np.ndarray], tags: Sequence[str]) -> np.ndarray:
    """(B, T, ...) with zeros behind each sequence; (B, ...) without a time axis.

    T is at least 1: no model must know about tensors without frames, only about sequences of length 0.
    """
    assert spec.shape is not None
    sizes = [
        max((array.shape[axis] for array in arrays), default=0) if size is None else size
        for axis, size in enumerate(spec.shape)
    ]
    if spec.time_axis is not None:
        sizes[spec.time_axis] = max(sizes[spec.time_axis], 1)
    dtype = torch_dtype(spec)
    if dtype.kind in "iu":
        _check_fits(name, dtype, arrays, tags)
    if spec.shape == ():
        return np.array(arrays, dtype)
    if spec.time_axis == 0 and None not in spec.shape[1:]:
        padded = np.empty((len(arrays), *sizes), dtype)
        for row, array in zip(padded, arrays, strict=True):
            length = len(array)
            row[:length] = array
            row[length:] = 0
    else:
        padded = np.zeros((len(arrays), *sizes), dtype)
        for row, array in zip(padded, arrays, strict=True):
            row[tuple(slice(size) for size in array.shape)] = array
    return padded


def _check_fits(name: str, dtype: np.dtype, arrays: Sequence[np.ndarray], tags: Sequence[str]) -> None:
    """No value may change by the conversion to a smaller type."""
    if all(array.dtype == dtype for array in arrays):
        return
    bounds = np.iinfo(dtype)
    for array, tag in zip(arrays, tags, strict=True):
        if array.size and array.dtype.kind in "iu" and not np.can_cast(array.dtype, dtype):
            low, high = int(array.min()), int(array.max())
            if low < bounds.min or high > bounds.max:
                raise _wrong(tag, name, f"values from {low} to {high} do not fit into {dtype}")


def _pad_text(spec: TensorSpec, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """(B,) array of str; with a time axis (B, T), empty strings behind each sequence."""
    if not spec.has_time:
        return np.array([str(array) for array in arrays], dtype=str)
    longest = max((len(array) for array in arrays), default=0)
    return np.array([[*map(str, array), *[""] * (longest - len(array))] for array in arrays], dtype=str)


def check_values(
    name: str,
    spec: TensorSpec,
    padded: np.ndarray,
    arrays: Sequence[np.ndarray],
    tags: Sequence[str],
    check_finite: bool,
) -> None:
    """Labels within 0 .. dim-1, and, if asked for, numbers that are numbers.

    Raises:
        DataError: names the first sequence that is wrong, and the frame.
    """
    if spec.sparse and spec.dim is not None and padded.size and (padded.min() < 0 or padded.max() >= spec.dim):
        for array, tag in zip(arrays, tags, strict=True):
            wrong = np.argwhere((array < 0) | (array >= spec.dim))
            if len(wrong):
                position = tuple(int(axis) for axis in wrong[0])
                expected = f"expected 0 to {spec.dim - 1} (dim={spec.dim})"
                raise _wrong(tag, name, f"label {array[position]} at {position}, {expected}")
    if check_finite and padded.dtype.kind == "f" and not np.isfinite(padded).all():
        for array, tag in zip(arrays, tags, strict=True):
            wrong = np.argwhere(~np.isfinite(array))
            if len(wrong):
                position = tuple(int(axis) for axis in wrong[0])
                raise _wrong(tag, name, f"{array[position]} at {position}, expected a finite number")


def _check_same_length(name: str, other: str, lengths: Mapping[str, Tensor], tags: Sequence[str]) -> None:
    unequal = (lengths[name] != lengths[other]).nonzero()
    if len(unequal):
        i = int(unequal[0])
        found = f"{int(lengths[name][i])} frames, and {int(lengths[other][i])} in {other!r}"
        raise _wrong(tags[i], name, f"{found}, expected the same number (same_length_as)")


def check_specs(specs: Mapping[str, TensorSpec], streams: Mapping[str, TensorSpec]) -> None:
    """What a data set holds must be what `extern_data` says, before anything is read.

    Raises:
        DataError: a stream is missing, or has another shape, dim or kind of values.
    """
    for name, spec in specs.items():
        if name not in streams:
            raise DataError(f"stream {name!r}: the data set has no such stream (it has: {', '.join(streams)})")
        found = streams[name]
        assert spec.shape is not None
        assert found.shape is not None
        shapes_agree = len(spec.shape) == len(found.shape) and all(
            a is None or b is None or a == b for a, b in zip(spec.shape, found.shape, strict=True)
        )
        if not shapes_agree:
            raise DataError(
                f"stream {name!r}: the data set has the shape {_shape_text(found)}, expected {_shape_text(spec)}"
            )
        if spec.sparse and found.sparse and found.dim is not None and spec.dim is not None and found.dim > spec.dim:
            raise DataError(f"stream {name!r}: the data set has {found.dim} classes, expected at most {spec.dim}")
        if (spec.dtype == "string") != (found.dtype == "string"):
            raise DataError(f"stream {name!r}: the data set has values of type {found.dtype}, expected {spec.dtype}")
        if spec.dtype != "string" and not np.can_cast(np.dtype(found.dtype), torch_dtype(spec), "same_kind"):
            raise DataError(f"stream {name!r}: the data set has values of type {found.dtype}, expected {spec.dtype}")
        if spec.same_length_as is not None and spec.same_length_as not in specs:
            raise DataError(
                f"stream {name!r}: same_length_as={spec.same_length_as!r} is no stream (there is: {', '.join(specs)})"
            )
