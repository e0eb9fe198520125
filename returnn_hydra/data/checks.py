"""Is an array what its stream's spec says? And common errors of data sources.

Legend: T frames.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.dataset import DataError, Dataset


def checked_array(value: Any, spec: TensorSpec, where: str) -> np.ndarray:
    """`value` as an array of the spec's dtype; only casts that keep the values are made.

    Args:
        value: anything that numpy makes an array of.
        where: begins the error message: names the file or data set, the sequence and the stream.

    Raises:
        DataError: wrong number of axes, wrong size of an axis, wrong dtype, or a class index outside [0, dim).
    """
    assert spec.shape is not None
    assert spec.dtype is not None
    array = np.asarray(value)
    if array.ndim != len(spec.shape) or any(
        size is not None and size != found for size, found in zip(spec.shape, array.shape, strict=True)
    ):
        raise DataError(f"{where}: shape {array.shape}, expected {_shape_text(spec.shape)}")
    if spec.dtype == "string":
        if array.dtype.kind not in "UO":
            raise DataError(f"{where}: dtype {array.dtype}, expected text")
        return array if array.dtype.kind == "U" else array.astype(str)
    dtype = np.dtype(spec.dtype)
    if array.dtype != dtype:
        array = _cast(array, dtype, where)
    if spec.sparse and spec.dim is not None and array.size:
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= spec.dim:
            raise DataError(f"{where}: class index {low if low < 0 else high}, expected 0 .. {spec.dim - 1}")
    return array


def _cast(array: np.ndarray, dtype: np.dtype, where: str) -> np.ndarray:
    if array.size and array.dtype.kind in "iu" and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        for value in (int(array.min()), int(array.max())):
            if not limits.min <= value <= limits.max:
                raise DataError(f"{where}: value {value} does not fit {dtype}")
    elif array.size and (array.dtype.kind not in "iufb" or not np.can_cast(array.dtype, dtype, "same_kind")):
        raise DataError(f"{where}: dtype {array.dtype}, expected {dtype}")
    return array.astype(dtype)


def _shape_text(shape: Sequence[int | None]) -> str:
    sizes = ["any" if size is None else str(size) for size in shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def checked_streams(values: Mapping[str, Any], specs: Mapping[str, TensorSpec], where: str) -> dict[str, np.ndarray]:
    """The arrays of one sequence, checked against the specs.

    Raises:
        DataError: a stream is missing or unexpected, or not what its spec says.
    """
    if set(values) != set(specs):
        raise DataError(f"{where}: got the streams {sorted(values)}, expected {sorted(specs)}")
    return {name: checked_array(values[name], spec, f"{where}, stream {name!r}") for name, spec in specs.items()}


def stream_spec(dataset: Dataset, stream: str, name: str = "") -> TensorSpec:
    """The spec of one stream.

    Raises:
        DataError: the data set has no such stream; says which there are.
    """
    if stream not in dataset.streams:
        owner = name or type(dataset).__name__
        raise DataError(f"{owner} has no stream {stream!r}{did_you_mean(stream, dataset.streams)}")
    return dataset.streams[stream]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """', did you mean ...?' or, if nothing is near, '; there is: ...'."""
    names = list(names)
    matches = difflib.get_close_matches(name, names, n=1)
    return f", did you mean {matches[0]!r}?" if matches else f"; there is: {', '.join(map(repr, names[:10]))}"


def specs_from_options(streams: Mapping[str, TensorSpec | Mapping[str, Any]]) -> dict[str, TensorSpec]:
    """TensorSpecs, given as such or as their options.

    Raises:
        DataError: an option is unknown or contradicts another.
    """
    specs = {}
    for name, spec in streams.items():
        try:
            specs[name] = spec if isinstance(spec, TensorSpec) else TensorSpec(**spec)
        except (TypeError, ValueError) as error:
            raise DataError(f"stream {name!r}: {error}") from error
    return specs


def spec_differences(first: TensorSpec, second: TensorSpec) -> str:
    """What makes two streams unlike, as text; empty if they can stand in one batch."""
    names = ("dim", "shape", "sparse", "dtype")
    differences = [name for name in names if getattr(first, name) != getattr(second, name)]
    return ", ".join(f"{name} {getattr(first, name)} / {getattr(second, name)}" for name in differences)
