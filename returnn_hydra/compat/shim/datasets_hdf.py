"""returnn.datasets.hdf"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.hdf import HDFDataset
from returnn_hydra.data.hdf_writer import HDFWriter

__all__ = ["HDFDataset", "SimpleHDFWriter"]


class SimpleHDFWriter:
    """RETURNN's writer: batches of sequences to one stream (and `extra` ones).

    Args:
        dim: features, or classes with ndim=1.
        ndim: axes of a sequence; default 2, and 1 without dim.
        labels: names of the classes.
        extra_type: stream name to (dim, ndim, dtype).
    """

    def __init__(
        self,
        filename: str,
        dim: int | None,
        labels: Sequence[str] | None = None,
        ndim: int | None = None,
        extra_type: Mapping[str, tuple[int | None, int, str]] | None = None,
        swmr: bool = False,
        extend_existing_file: bool = False,
    ) -> None:
        if extend_existing_file:
            raise ValueError("SimpleHDFWriter: extend_existing_file is not available; write another file")
        self.filename = filename
        self.dim = dim
        self.ndim = ndim if ndim is not None else (1 if dim is None else 2)
        self.labels = None if labels is None else list(labels)
        self.extra_type = dict(extra_type or {})
        self._writer: HDFWriter | None = None

    def insert_batch(
        self, inputs: Any, seq_len: Any, seq_tag: Sequence[str], extra: Mapping[str, Any] | None = None
    ) -> None:
        """Add sequences.

        Args:
            inputs: (B, T, ...).
            seq_len: lengths (B,), or {axis: lengths (B,)} with axis 0 the one behind the batch.
            extra: (B, ...) for every extra stream; its whole row of every sequence is stored.
        """
        inputs = np.asarray(inputs)
        lengths = seq_len if isinstance(seq_len, Mapping) else {0: seq_len}
        for index, tag in enumerate(seq_tag):
            row = inputs[index]
            for axis, sizes in lengths.items():
                row = row.take(range(int(sizes[index])), axis=axis)
            streams = {"data": row, **{name: np.asarray(values)[index] for name, values in (extra or {}).items()}}
            writer = self._opened(streams)
            writer.write(tag, streams)

    def _opened(self, streams: Mapping[str, np.ndarray]) -> HDFWriter:
        if self._writer is None:
            labels = {"data": self.labels} if self.labels else None
            specs = {name: self._spec(name, array) for name, array in streams.items()}
            self._writer = HDFWriter(self.filename, specs, labels=labels)
        return self._writer

    def _spec(self, name: str, array: np.ndarray) -> TensorSpec:
        if name == "data":
            dim, ndim = self.dim, self.ndim
        else:
            dim, ndim, _ = self.extra_type.get(name, (None, array.ndim, ""))
        dtype = "string" if array.dtype.kind in "OSU" else str(array.dtype)
        if array.ndim == 1 and dim is not None and ndim == 1:
            return TensorSpec(dim=dim, sparse=True, dtype=dtype)
        if array.ndim == 0:
            return TensorSpec(shape=(), dtype=dtype)
        return TensorSpec(shape=(None, *array.shape[1:]), dtype=dtype)

    def close(self) -> None:
        """The file is complete."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
