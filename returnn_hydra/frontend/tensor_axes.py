"""Looking up axes of a tensor: by dim, by number, by RETURNN's short names (B, T, F, ...)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from returnn_hydra.frontend.dim import Dim, VerifyOutShapeException

if TYPE_CHECKING:
    from returnn_hydra.frontend.tensor import Tensor


def axes_of(own: Sequence[Dim], wanted: Sequence[Dim]) -> list[int]:
    """For every wanted dim the axis of `own` that it means, each axis once; -1 where there is none.

    The very same dim object is meant before an equal one, and of several equal ones that with the highest priority.

    Raises:
        ValueError: two equal dims have the same priority.
    """
    free = dict(enumerate(own))
    axes = [-1] * len(wanted)
    for same in (True, False):
        for position, dim in enumerate(wanted):
            found = [n for n, d in free.items() if d is dim or (d == dim and not same)] if axes[position] < 0 else []
            if found:
                axes[position] = _highest(own, found)
                del free[axes[position]]
    return axes


def _highest(dims: Sequence[Dim], axes: Sequence[int]) -> int:
    """The one of these axes, all of one dim, with the highest priority."""
    if len(axes) == 1:
        return axes[0]
    highest = max(dims[n].match_priority for n in axes)
    found = [n for n in axes if dims[n].match_priority == highest]
    if len(found) > 1:
        raise ValueError(f"{dims[axes[0]]} is ambiguous among {list(dims)}; tell its uses apart by match_priority")
    return found[0]


class TensorAxes:
    """The part of `Tensor` that answers questions about its axes."""

    dims: tuple[Dim, ...]
    name: str
    sparse_dim: Dim | None
    feature_dim: Dim | None
    _time_dim: Dim | None
    raw_tensor: Any

    @property
    def dims_set(self) -> set[Dim]:
        return set(self.dims)

    @property
    def dim_tags(self) -> tuple[Dim, ...]:
        return self.dims

    @property
    def dim_tags_set_implicit(self) -> set[Dim]:
        """The dims, and those that their lengths depend on."""
        return self.dims_set | self.dim_tags_set_implicit_only

    @property
    def dim_tags_set_implicit_only(self) -> set[Dim]:
        """Dims that lengths depend on, without an axis here."""
        lengths = [d.dyn_size_ext for d in self.dims]
        return {d for length in lengths if length is not None for d in length.dims} - self.dims_set

    dim_tags_set_implicit_only_wrapped = dim_tags_set_implicit_only

    @property
    def batch_ndim(self) -> int:
        """Number of axes, the batch included."""
        return len(self.dims)

    @property
    def batch_shape(self) -> tuple[int | None, ...]:
        """Static sizes; None: dynamic."""
        return tuple(d.dimension for d in self.dims)

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Static sizes without the batch axis; None: dynamic."""
        return tuple(d.dimension for d in self.dims if not d.is_batch_dim())

    @property
    def ndim(self) -> int:
        """Number of axes without the batch."""
        return len(self.shape)

    @property
    def batch_dim_axis(self) -> int | None:
        return next((axis for axis, d in enumerate(self.dims) if d.is_batch_dim()), None)

    def have_batch_axis(self) -> bool:
        return self.batch_dim_axis is not None

    def get_batch_dim_tag(self) -> Dim:
        axis = self.batch_dim_axis
        if axis is None:
            raise ValueError(f"{self} has no batch axis")
        return self.dims[axis]

    def get_batch_dim(self) -> int:
        """Number of sequences."""
        return self.get_batch_dim_tag().get_dim_value()

    @property
    def time_dim_axis(self) -> int | None:
        return self.dims.index(self._time_dim) if self._time_dim in self.dims else None

    @time_dim_axis.setter
    def time_dim_axis(self, axis: int | None) -> None:
        self._time_dim = None if axis is None else self.dims[axis]

    def have_time_axis(self) -> bool:
        return self.time_dim_axis is not None

    def get_time_dim_tag(self) -> Dim:
        """The time axis: the declared one, else the only dynamic axis.

        Raises:
            ValueError: neither.
        """
        if self._time_dim is not None and self._time_dim in self.dims:
            return self._time_dim
        dynamic = self.get_dyn_size_tags()
        if len(dynamic) != 1:
            raise ValueError(f"{self} has no time axis: {len(dynamic)} of its axes have a length per sequence")
        return dynamic[0]

    def get_dyn_size_tags(self) -> list[Dim]:
        """Axes that have a length per sequence."""
        return [d for d in self.dims if d.is_dynamic() and not d.is_batch_dim()]

    @property
    def feature_dim_axis(self) -> int | None:
        return self.dims.index(self.feature_dim) if self.feature_dim in self.dims else None

    @feature_dim_axis.setter
    def feature_dim_axis(self, axis: int | None) -> None:
        self.feature_dim = None if axis is None else self.dims[axis]

    def have_feature_axis(self) -> bool:
        return self.feature_dim_axis is not None

    @property
    def feature_dim_or_sparse_dim(self) -> Dim | None:
        return self.sparse_dim if self.sparse_dim is not None else self.feature_dim

    @property
    def dim(self) -> int | None:
        """Number of classes if sparse, else of features."""
        dim = self.feature_dim_or_sparse_dim
        return None if dim is None else dim.dimension

    @property
    def sparse(self) -> bool:
        """The values are class indices."""
        return self.sparse_dim is not None

    @property
    def vocab(self) -> Any:
        """Vocabulary of the classes, if there is one."""
        dim = self.feature_dim_or_sparse_dim
        return None if dim is None else dim.vocab

    def has_axis(self, axis: Dim | str | int) -> bool:
        try:
            self.get_axis_from_description(axis)
        except ValueError:
            return False
        return True

    def have_dim_tag(self, tag: Dim, **_options: Any) -> bool:
        return tag in self.dims

    def get_axis_from_description(self, axis: Dim | str | int, allow_int: Any = True) -> int:
        """Number of an axis given as dim, number, or one of B, T, F, stag:<part of its name>.

        Raises:
            ValueError: it is not there; lists what is.
        """
        if isinstance(axis, int):
            return axis % len(self.dims)
        if isinstance(axis, Dim):
            uses = [n for n, dim in enumerate(self.dims) if dim is axis or dim == axis]
            if uses:
                return _highest(self.dims, uses)
            raise ValueError(f"{self}: axis {axis} is not there; its dims are {list(self.dims)}")
        short = axis.lower()
        found = {"b": self.batch_dim_axis, "t": self.time_dim_axis, "f": self.feature_dim_axis}
        found |= {"batch": found["b"], "time": found["t"], "feature": found["f"]}
        if found.get(short) is not None:
            result = found[short]
            assert result is not None
            return result
        name = short.removeprefix("stag:").removeprefix("dim:")
        matching = [n for n, d in enumerate(self.dims) if name in d.name.lower()]
        if short not in found and len(matching) == 1:
            return matching[0]
        raise ValueError(f"{self}: no axis '{axis}'; its dims are {list(self.dims)}")

    def get_axes_from_description(self, axes: Any, allow_int: Any = True) -> list[int]:
        """Like get_axis_from_description, for one axis or several."""
        if isinstance(axes, (Dim, str, int)):
            axes = [axes]
        numbers: list[int] = []
        for axis in axes:
            free = [n for n, d in enumerate(self.dims) if n not in numbers and d == axis]
            numbers.append(_highest(self.dims, free) if free else self.get_axis_from_description(axis))
        return numbers

    def get_dim_tag_from_description(self, axis: Dim | str | int) -> Dim:
        return self.dims[self.get_axis_from_description(axis)]

    def get_dim_tag(self, axis: int) -> Dim:
        return self.dims[axis]

    def get_dim(self, axis: int) -> int:
        """Size of an axis."""
        return self.dims[axis].get_dim_value()

    def get_spatial_batch_axes(self) -> list[int]:
        """Axes that are neither batch nor feature."""
        return [n for n, d in enumerate(self.dims) if not d.is_batch_dim() and n != self.feature_dim_axis]

    get_spatial_axes = get_spatial_batch_axes

    def remaining_dims(self, remove: Dim | Sequence[Dim] | None = None) -> list[Dim]:
        """All dims but these.

        Raises:
            ValueError: one of them is not there.
        """
        remaining = list(self.dims)
        for dim in () if remove is None else (remove,) if isinstance(remove, Dim) else remove:
            if dim not in remaining:
                raise ValueError(f"{self} has no dim {dim}; its dims are {list(self.dims)}")
            remaining.remove(dim)
        return remaining

    def get_sequence_lengths(self) -> torch.Tensor:
        """Number of frames of every sequence, (B,) int32."""
        lengths = self.get_time_dim_tag().dyn_size
        if lengths is None:
            raise ValueError(f"{self}: its time axis has no lengths")
        return lengths

    def get_sequence_mask_tensor(self, axis: int) -> Tensor:
        """True for real frames of that axis."""
        return self.dims[axis].get_mask(device=self.device)

    def get_sequence_mask_broadcast(self, axis: int | Dim | None = None) -> torch.Tensor:
        """Mask of the time axis (or `axis`), broadcast to all axes of this tensor."""
        number = self.time_dim_axis if axis is None else self.get_axis_from_description(axis)
        assert number is not None
        return self.get_sequence_mask_tensor(number).copy_compatible_to_dims_raw(self.dims)

    def get_sequence_mask(self) -> torch.Tensor:
        """Mask of the time axis, (B, T) or (T, B) as the axes come."""
        mask = self.get_time_dim_tag().get_mask(device=self.device)
        return mask.copy_transpose([d for d in self.dims if d in mask.dims]).raw_tensor

    @property
    def device(self) -> str | None:
        """Device of the values; None without values."""
        return None if self.raw_tensor is None else str(getattr(self.raw_tensor, "device", "cpu"))

    def get_batch_axes_short_description(self, special_axes: bool = True) -> str:
        return ",".join(self._describe_dim(d) if special_axes else d.short_repr() for d in self.dims)

    def _describe_dim(self, dim: Dim) -> str:
        mark = "T|" if dim is self._time_dim else "F|" if dim is self.feature_dim else ""
        return mark + dim.short_repr()

    def find_matching_dim_map(
        self, other: Tensor, other_axes: Sequence[int], is_equal_opts: Any = None
    ) -> dict[int, int]:
        """Axis of `other` -> axis here, by equal dims."""
        return {axis: self.dims.index(other.dims[axis]) for axis in other_axes if other.dims[axis] in self.dims}

    def verify_out_shape(self, out_shape: Any, allow_missing_implicit_dims: bool = False) -> None:
        """Check the dims, in any order.

        Raises:
            VerifyOutShapeException: they differ.
        """
        expected = {getattr(dim, "tag", dim) for dim in out_shape}
        implicit = {d.tag for d in out_shape if hasattr(d, "tag")}
        if self.dims_set != expected and self.dims_set | implicit != expected:
            raise VerifyOutShapeException(f"{self}: dims {list(self.dims)}, expected {list(out_shape)}")

    def num_elements(self) -> int | Tensor:
        """Number of values, padding not counted."""
        from returnn_hydra.frontend.create import num_elements_of_shape

        return num_elements_of_shape(self.dims)
