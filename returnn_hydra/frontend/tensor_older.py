"""Questions about axes by number, and copies with axes at other places, as RETURNN's setups before named axes ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.tensor_axes import axes_of
from returnn_hydra.frontend.tensor_copies import TensorCopies

if TYPE_CHECKING:
    from returnn_hydra.frontend.tensor import Tensor


class OlderTensorMethods(TensorCopies):
    """The part of `Tensor` that counts axes. "Without batch": the number of an axis among those that are no batch."""

    SpecialAxesNames = ("time_dim_axis", "feature_dim_axis")

    @property
    def shape_dense(self) -> tuple[int | None, ...]:
        """`shape`, for class indices with the number of classes at the end."""
        return (*self.shape, self.dim) if self.sparse else self.shape

    @property
    def batch_shape_dense(self) -> tuple[int | None, ...]:
        """`batch_shape`, for class indices with the number of classes at the end."""
        return (*self.batch_shape, self.dim) if self.sparse else self.batch_shape

    @property
    def ndim_dense(self) -> int:
        return len(self.shape_dense)

    @property
    def batch_ndim_dense(self) -> int:
        return len(self.batch_shape_dense)

    @property
    def dim_tags_sparse(self) -> tuple[Dim, ...]:
        """The dims without that of the features."""
        return tuple(d for n, d in enumerate(self.dims) if self.sparse or n != self.feature_dim_axis)

    @property
    def is_batch_major(self) -> bool:
        return self.batch_dim_axis == 0

    @property
    def is_time_major(self) -> bool:
        return self.time_dim_axis == 0

    @property
    def is_batch_feature_major(self) -> bool:
        return self.batch_dim_axis == 0 and self.feature_dim_axis == 1

    def time_dimension(self) -> int:
        """Frames of the longest sequence."""
        return self.get_time_dim_tag().get_dim_value()

    def get_batch_axis(self, axis: int) -> int:
        """Number of an axis, from its number without batch."""
        batch = self.batch_dim_axis
        return axis + 1 if batch is not None and 0 <= batch <= axis else axis

    def get_batch_axis_excluding_batch(self, axis: int) -> int | None:
        """Number of an axis without batch; None for the batch."""
        batch = self.batch_dim_axis
        if axis == batch:
            return None
        return axis - 1 if batch is not None and axis > batch else axis

    @property
    def time_dim_axis_excluding_batch(self) -> int | None:
        axis = self.time_dim_axis
        return None if axis is None else self.get_batch_axis_excluding_batch(axis)

    @property
    def size_placeholder(self) -> dict[int, torch.Tensor]:
        """Lengths, by the number of their axis without batch."""
        sizes = {n: d.dyn_size for n, d in enumerate(self.dims) if d.is_dynamic() and not d.is_batch_dim()}
        return {self.get_batch_axis_excluding_batch(n): size for n, size in sizes.items() if size is not None}  # type: ignore[misc]

    def get_axes(
        self, exclude_time: bool = False, exclude_batch: bool = False, exclude_feature: bool = False
    ) -> list[int]:
        """Numbers of the axes."""
        excluded = {
            self.time_dim_axis if exclude_time else None,
            self.batch_dim_axis if exclude_batch else None,
            self.feature_dim_axis if exclude_feature else None,
        }
        return [n for n in range(len(self.dims)) if n not in excluded]

    def get_dynamic_axes(self) -> list[int]:
        """Axes without a static size; not the batch."""
        return [n for n in self.get_axes(exclude_batch=True) if self.dims[n].dimension is None]

    def get_static_axes(self) -> list[int]:
        """Axes with a static size; not the batch."""
        return [n for n in self.get_axes(exclude_batch=True) if self.dims[n].dimension is not None]

    def is_axis_dynamic(self, axis: int) -> bool:
        return axis in self.get_dynamic_axes()

    def is_time_axis_dynamic(self) -> bool:
        return self.get_time_dim_tag().dimension is None

    def has_dynamic_size(self, axis: int) -> bool:
        """Whether there are lengths for the axis."""
        return self.dims[axis].dyn_size is not None

    def get_dynamic_size(self, axis: int) -> torch.Tensor:
        """The lengths of an axis."""
        lengths = self.dims[axis].dyn_size
        if lengths is None:
            raise ValueError(f"{self}: axis {axis} has no lengths")
        return lengths

    def get_feature_batch_axes(self) -> list[int]:
        axis = self.feature_dim_axis
        return [] if axis is None else [axis]

    def get_axes_by_tag_name(self, name: str, spatial_only: bool = False) -> list[int]:
        """Axes whose dims have a text in their names."""
        axes = self.get_spatial_batch_axes() if spatial_only else self.get_axes()
        return [n for n in axes if name.lower() in self.dims[n].name.lower()]

    def get_axis_by_tag_name(self, name: str, spatial_only: bool = False) -> int:
        """The only such axis.

        Raises:
            ValueError: there is none, or several.
        """
        axes = self.get_axes_by_tag_name(name, spatial_only)
        if len(axes) != 1:
            raise ValueError(f"{self}: {len(axes)} axes have '{name}' in their names; the dims are {list(self.dims)}")
        return axes[0]

    def get_size_dim_tag(self, number: int) -> Dim:
        """The dim with lengths of that number."""
        return self.get_dyn_size_tags()[number]

    def get_batch_shape(self, batch_dim: Any) -> tuple[Any, ...]:
        """Static sizes, with a given one for the batch."""
        return tuple(batch_dim if d.is_batch_dim() else d.dimension for d in self.dims)

    def get_special_axes_dict(
        self, counted_with_batch_dim: bool = True, only_available: bool = False
    ) -> dict[str, int | None]:
        """Time and feature axis by name."""
        axes: dict[str, int | None] = {name: getattr(self, name) for name in self.SpecialAxesNames}
        if not counted_with_batch_dim:
            axes = {k: None if n is None else self.get_batch_axis_excluding_batch(n) for k, n in axes.items()}
        return {k: n for k, n in axes.items() if n is not None} if only_available else axes

    def is_same_time_dim(self, other: Tensor) -> bool:
        return other.have_time_axis() and self.get_time_dim_tag() == other.get_time_dim_tag()

    def mark_same_time(self, tags: Dim | Sequence[Dim] | set[Dim], must_match: bool = False) -> bool:
        """Make the first axis with one of these dims the time axis; whether there is one.

        Raises:
            ValueError: with `must_match`, there is none.
        """
        tags = [tags] if isinstance(tags, Dim) else list(tags)
        found = next((d for d in self.dims if d in tags), None)
        if found is None and must_match:
            raise ValueError(f"{self}: none of {tags} is among its dims")
        if found is not None:
            self._time_dim = found
        return found is not None

    def find_matching_dims(self, dim_tag: Dim, is_equal_opts: Any = None) -> list[int]:
        """Axes with that dim."""
        return [n for n, d in enumerate(self.dims) if d == dim_tag]

    def get_out_permutation_to_dims(self, dims: Sequence[Dim]) -> list[int]:
        """The axis here of every one of `dims`; -1 where there is none."""
        return axes_of(self.dims, dims)

    def get_full_name(self) -> str:
        return self.name

    def copy_with_batch_dim_axis(self, batch_dim_axis: int) -> Tensor:
        """The batch at that place."""
        return self._moved(self.batch_dim_axis, batch_dim_axis, "batch")

    def copy_with_time_dim_axis(self, time_dim_axis: int) -> Tensor:
        """The time axis at that place."""
        return self._moved(self.time_dim_axis, time_dim_axis, "time")

    def copy_with_feature_dim_axis(self, feature_dim_axis: int) -> Tensor:
        """The feature axis at that place."""
        return self._moved(self.feature_dim_axis, feature_dim_axis, "feature")

    def _moved(self, axis: int | None, place: int, what: str) -> Tensor:
        if axis is None:
            raise ValueError(f"{self} has no {what} axis")
        return self.copy_move_axis(axis, place)

    def copy_as_batch_feature_major(self) -> Tensor:
        """Batch, features, and then the others."""
        return self.copy_as_batch_major().copy_with_feature_dim_axis(1)

    def copy_as_bt_or_tb_major(self) -> Tensor:
        """Batch and time first, in the order that they have."""
        if self.time_dim_axis == 0 or (
            self.time_dim_axis is not None and self.time_dim_axis < (self.batch_dim_axis or 0)
        ):
            return self.copy_with_time_dim_axis(0).copy_with_batch_dim_axis(1)
        return self.copy_with_batch_dim_axis(0).copy_with_time_dim_axis(1)

    def get_placeholder_as_batch_major(self) -> torch.Tensor:
        """The values, batch first."""
        return self.copy_as_batch_major().raw_tensor

    def get_placeholder_as_time_major(self) -> torch.Tensor:
        """The values, time first."""
        return self.copy_as_time_major().raw_tensor

    def copy_template_excluding_time_dim(self, name: str | None = None) -> Tensor:
        """Without values and time axis."""
        return self.copy_template_excluding_axis(self.get_time_dim_tag(), name=name)

    def copy_template_excluding_spatial_dim(self, spatial_axis_num: int, name: str | None = None) -> Tensor:
        """Without values and that one of the axes that are neither batch nor feature."""
        return self.copy_template_excluding_axis(self.get_spatial_batch_axes()[spatial_axis_num], name=name)

    def copy_add_feature_dim(self, axis: int | None = None) -> Tensor:
        """With a feature axis of size 1 (at the end, if no place is given); class indices get a spatial one."""
        if self.sparse:
            return self.copy_add_spatial_dim(axis)
        dim = Dim(1, name="feature1", kind=Dim.Types.Feature)
        place = len(self.dims) if axis is None else axis % (len(self.dims) + 1)
        new = self.copy_add_dim_by_tag(dim, unbroadcast=True, axis=place)
        new.feature_dim = dim
        return new

    def copy_add_spatial_dim(
        self, spatial_dim_axis: int | None = None, dim: int = 1, auto_time_dim_axis: bool = True
    ) -> Tensor:
        """With a spatial axis (behind the last one, if no place is given); it is the time axis where there is none."""
        new_dim = Dim(dim, name="added_spatial", kind=Dim.Types.Spatial)
        place = spatial_dim_axis
        if place is None:
            batch = self.batch_dim_axis
            place = max(self.get_spatial_batch_axes(), default=-1 if batch is None else batch) + 1
        new = self.copy_add_dim_by_tag(new_dim, unbroadcast=True, axis=place % (len(self.dims) + 1))
        if auto_time_dim_axis and self.time_dim_axis is None:
            new._time_dim = new_dim
        return new
