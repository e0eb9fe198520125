"""RETURNN's `Data` as functions of configs see it (`source(0, as_data=True)`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.axis import BATCH, BEAM, Axis
from returnn_hydra.network.expressions import Facade
from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.network.tf_face.tensor import tf_tensor


class DeclaredData:
    """RETURNN's `Data(...)` where a function of the config makes one, as type of a value (`out_type`)."""

    def __init__(self, name: str | None = None, **options: Any) -> None:
        self.name = name
        self.options = options


class UserData(Facade, DeclaredData):
    """A batch-major tensor with the places of its axes."""

    expression_attributes = frozenset(
        "placeholder batch_dim_axis time_dim_axis feature_dim_axis dim sparse ndim batch_ndim dtype batch_shape "
        "get_placeholder_as_batch_major get_placeholder_as_time_major get_sequence_lengths copy_as_batch_major "
        "size_placeholder is_batch_major is_time_major copy get_sequence_mask have_time_axis have_batch_axis "
        "have_feature_axis shape time_dimension get_batch_dim get_dynamic_size get_dynamic_axes".split()
    )

    def __init__(self, named: NamedTensor, hidden: frozenset[Axis] = frozenset()) -> None:
        first = [axis for axis in named.axes if axis.kind in (BATCH, BEAM) or axis in hidden]
        first.sort(key=lambda axis: (axis.kind != BATCH, axis.kind != BEAM))
        self.rest = [axis for axis in named.axes if axis not in first]
        self.first = first
        self.named = named.ordered([*first, *self.rest])
        self.placeholder = tf_tensor(self.named.raw.flatten(0, len(first) - 1) if len(first) > 1 else self.named.raw)

    def _place(self, axis: Axis | None) -> int | None:
        if axis is None or axis not in self.rest:
            return None
        return self.rest.index(axis) + (1 if self.first else 0)

    @property
    def batch_dim_axis(self) -> int | None:
        return 0 if self.first else None

    @property
    def _time(self) -> Axis | None:
        time = self.named.time_axis
        return time if time in self.rest else next((axis for axis in self.rest if axis.is_dynamic), None)

    @property
    def time_dim_axis(self) -> int | None:
        return self._place(self._time)

    @property
    def feature_dim_axis(self) -> int | None:
        return self._place(self.named.feature)

    @property
    def dim(self) -> int | None:
        return self.named.dim

    @property
    def sparse(self) -> bool:
        return self.named.sparse_dim is not None

    @property
    def batch_ndim(self) -> int:
        return self.placeholder.dim()

    @property
    def ndim(self) -> int:
        return self.placeholder.dim() - (1 if self.first else 0)

    @property
    def dtype(self) -> str:
        return str(self.placeholder.dtype).removeprefix("torch.")

    @property
    def batch_shape(self) -> tuple[int | None, ...]:
        return (None, *[None if axis.is_dynamic else axis.size for axis in self.rest])

    @property
    def size_placeholder(self) -> dict[int, Tensor]:
        return {
            place: tf_tensor(axis.lengths.to(self.placeholder.device, torch.int32))
            for place, axis in enumerate(self.rest)
            if axis.lengths is not None
        }

    @property
    def is_batch_major(self) -> bool:
        return True

    @property
    def is_time_major(self) -> bool:
        return False

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Without the batch; None: differs from sequence to sequence."""
        return self.batch_shape[1:]

    def time_dimension(self) -> Tensor:
        """Number of frames of the longest sequence."""
        place = self.time_dim_axis
        if place is None:
            raise ValueError("the data has no time axis")
        return tf_tensor(torch.tensor(self.placeholder.shape[place], dtype=torch.int32))

    def get_batch_dim(self) -> Tensor:
        return tf_tensor(torch.tensor(self.placeholder.shape[0], dtype=torch.int32))

    def get_dynamic_size(self, axis: int) -> Tensor:
        """Lengths of the sequences along an axis, which counts the batch."""
        return self.size_placeholder[axis - 1]

    def get_dynamic_axes(self) -> list[int]:
        """Axes whose sizes differ from sequence to sequence, counting the batch."""
        return [place + (1 if self.first else 0) for place, axis in enumerate(self.rest) if axis.is_dynamic]

    def have_batch_axis(self) -> bool:
        return bool(self.first)

    def have_feature_axis(self) -> bool:
        return self.feature_dim_axis is not None

    def have_time_axis(self) -> bool:
        return self.time_dim_axis is not None

    def copy(self, name: str | None = None) -> UserData:
        return self

    def copy_as_batch_major(self) -> UserData:
        return self

    def get_placeholder_as_batch_major(self) -> Tensor:
        return self.placeholder

    def get_placeholder_as_time_major(self) -> Tensor:
        return self.placeholder.transpose(0, 1)

    def get_sequence_lengths(self) -> Tensor:
        time = self._time
        if time is None or time.lengths is None:
            raise ValueError("the data has no time axis")
        return tf_tensor(time.lengths.to(self.placeholder.device, torch.int32))

    def get_sequence_mask(self) -> Tensor:
        lengths = self.get_sequence_lengths()
        time = self._time
        assert time is not None
        return torch.arange(time.size, device=lengths.device) < lengths[:, None]
