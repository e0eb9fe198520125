"""What `hdf_dump` layers give: the values of every sequence, cut to its length.

Legend: B sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.network.axis import Axis
from returnn_hydra.network.errors import NetworkError
from returnn_hydra.network.named_tensor import NamedTensor


@dataclass(frozen=True)
class Dump:
    """One `hdf_dump` layer in one pass.

    Attributes:
        layer: its path.
        filename: the HDF file that the sequences go to.
        values: "data" is the layer's input, the others its `extra`.
        labels: names of the classes or features.
    """

    layer: str
    filename: str
    values: Mapping[str, NamedTensor]
    labels: Sequence[str] | None = field(default=None)

    def specs(self) -> dict[str, TensorSpec]:
        return {name: self._spec(name, value) for name, value in self.values.items()}

    def _spec(self, name: str, value: NamedTensor) -> TensorSpec:
        shape = tuple(None if axis.is_dynamic else axis.size for axis in self._axes(name, value)[1:])
        dtype = str(value.raw.dtype).removeprefix("torch.")
        if value.sparse_dim is not None:
            return TensorSpec(dim=value.sparse_dim, sparse=True, shape=shape, dtype=dtype)
        return TensorSpec(shape=shape, dtype=dtype)

    def _axes(self, name: str, value: NamedTensor) -> list[Axis]:
        """Batch, axes of variable size, fixed axes.

        Raises:
            NetworkError: there is no batch axis, or a beam.
        """
        if value.beam_axis is not None:
            raise NetworkError(
                f"{self.layer}: {name!r} has several hypotheses per sequence; put a 'decide' layer there"
            )
        if value.batch_axis is None:
            raise NetworkError(f"{self.layer}: {name!r} has no batch axis: {list(value.axes)}")
        rest = [axis for axis in value.axes if axis is not value.batch_axis]
        return [value.batch_axis, *sorted(rest, key=lambda axis: not axis.is_dynamic)]

    def sequences(self) -> Iterator[dict[str, np.ndarray]]:
        """For every sequence of the batch its arrays."""
        arrays = {}
        lengths: dict[str, list[np.ndarray]] = {}
        for name, value in self.values.items():
            axes = self._axes(name, value)
            arrays[name] = value.to_axes(axes).detach().cpu().numpy()
            lengths[name] = [self._lengths(axis, axes[0]) for axis in axes[1:] if axis.is_dynamic]
        for index in range(len(next(iter(arrays.values())))):
            yield {
                name: array[index][tuple(slice(int(sizes[index])) for sizes in lengths[name])]
                for name, array in arrays.items()
            }

    def _lengths(self, axis: Axis, batch: Axis) -> np.ndarray:
        assert axis.lengths is not None
        if tuple(axis.over) != (batch,):
            raise NetworkError(f"{self.layer}: the lengths of {axis} are not one per sequence")
        return axis.lengths.cpu().numpy()
