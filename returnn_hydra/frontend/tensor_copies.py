"""Copies of a tensor: templates without values, other orders of axes, aligned with other dims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from returnn_hydra.frontend.dim import Dim, batch_dim
from returnn_hydra.frontend.tensor_axes import TensorAxes, axes_of

if TYPE_CHECKING:
    from returnn_hydra.frontend.tensor import Tensor


class TensorCopies(TensorAxes):
    """The part of `Tensor` that makes other tensors of it."""

    dtype: str
    version: int
    available_for_inference: bool
    batch: Any

    def _new(
        self, dims: Sequence[Dim], raw: Any = None, *, name: str | None = None, dtype: str | None = None
    ) -> Tensor:
        """A tensor like this one with other dims; special axes that are gone are dropped."""
        from returnn_hydra.frontend.tensor import Tensor

        new = Tensor(
            name or self.name,
            dims=dims,
            dtype=dtype or self.dtype,
            sparse_dim=self.sparse_dim,
            feature_dim=self.feature_dim if self.feature_dim in dims else None,
            raw_tensor=raw,
            version=self.version,
            available_for_inference=self.available_for_inference,
        )
        new._time_dim = self._time_dim if self._time_dim in dims else None
        return new

    def copy(self, name: str | None = None) -> Tensor:
        """The same values under a new tensor object."""
        return self._new(self.dims, self.raw_tensor, name=name)

    def copy_template(self, name: str | None = None, *, dtype: str | None = None) -> Tensor:
        """Without values."""
        return self._new(self.dims, name=name, dtype=dtype)

    def copy_template_dense(self, name: str | None = None, dtype: str | None = None) -> Tensor:
        """Without values; classes become features."""
        if self.sparse_dim is None:
            return self.copy_template(name, dtype=dtype)
        new = self._new([*self.dims, self.sparse_dim], name=name, dtype=dtype or "float32")
        new.feature_dim, new.sparse_dim = self.sparse_dim, None
        return new

    def copy_template_new_dim_tags(
        self, new_dim_tags: Sequence[Dim], name: str | None = None, keep_special_axes: bool = False
    ) -> Tensor:
        """Without values, with other dims."""
        new = self._new(list(new_dim_tags), name=name)
        new.feature_dim = None
        if keep_special_axes:
            new.feature_dim_axis = self.feature_dim_axis
            new.time_dim_axis = self.time_dim_axis
        return new

    def copy_template_excluding_axis(self, exclude_axis: int | Dim, name: str | None = None) -> Tensor:
        """Without values and without that axis."""
        axis = self.get_axis_from_description(exclude_axis)
        return self._new([d for n, d in enumerate(self.dims) if n != axis], name=name)

    def copy_template_replace_dim_tag(self, axis: int | Dim, new_dim_tag: Dim, name: str | None = None) -> Tensor:
        """Without values, one dim replaced."""
        number = self.get_axis_from_description(axis)
        new = self._new([new_dim_tag if n == number else d for n, d in enumerate(self.dims)], name=name)
        if number == self.feature_dim_axis:
            new.feature_dim = new_dim_tag
        if number == self.time_dim_axis:
            new._time_dim = new_dim_tag
        return new

    def copy_template_adding_time_dim(self, name: str | None = None, time_dim_axis: int = 0) -> Tensor:
        """Without values, with a new time axis."""
        time = Dim(None, name="time")
        dims = [*self.dims[:time_dim_axis], time, *self.dims[time_dim_axis:]]
        new = self._new(dims, name=name)
        new._time_dim = time
        return new

    def copy_template_set_ctx(self, ctx: Any) -> Tensor:
        return self.copy_template()

    def copy_transpose(self, perm: Sequence[int | Dim], *, allow_int: bool = True) -> Tensor:
        """The axes in another order.

        Raises:
            ValueError: `perm` does not name every axis once.
        """
        named = [axis for axis in perm if isinstance(axis, Dim)]
        only_dims = len(named) == len(perm)
        order = axes_of(self.dims, named) if only_dims else [self.get_axis_from_description(axis) for axis in perm]
        if sorted(order) != list(range(len(self.dims))):
            raise ValueError(f"copy_transpose: {list(perm)} is no order of the dims of {self}")
        if order == list(range(len(order))):
            return self.copy()
        raw = self.raw_tensor
        if raw is not None:
            raw = raw.permute(order) if isinstance(raw, torch.Tensor) else raw.transpose(order)
        return self._new([self.dims[n] for n in order], raw)

    def copy_compatible_to_dims_raw(
        self, dims: Sequence[Dim], *, add_dims: bool = True, unbroadcast: bool = False
    ) -> torch.Tensor:
        """The values with the axes in the order of `dims`; size 1 where a dim is missing here.

        Args:
            unbroadcast: expand the missing dims to their full size.

        Raises:
            ValueError: a dim of this tensor is not in `dims`.
        """
        if len(dims) == len(self.dims) and all(a is b for a, b in zip(self.dims, dims, strict=True)):
            return self.raw_tensor
        axes = axes_of(self.dims, dims)
        order = [n for n in axes if n >= 0]
        if len(order) < len(self.dims):
            missing = [d for n, d in enumerate(self.dims) if n not in order]
            raise ValueError(f"{self} has dims {missing} that are not among {list(dims)}")
        raw = self.raw_tensor.permute(order)
        for axis, number in enumerate(axes):
            if number < 0:
                raw = raw.unsqueeze(axis)
        if unbroadcast:
            raw = raw.expand([d.get_dim_value() if n < 0 else -1 for d, n in zip(dims, axes, strict=True)])
        return raw

    def copy_compatible_to_dims(
        self, dims: Sequence[Dim], *, add_dims: bool = True, unbroadcast: bool = False
    ) -> Tensor:
        """The same as a tensor; missing dims become new dims of size 1, or the full dims with `unbroadcast`."""
        raw = self.copy_compatible_to_dims_raw(dims, unbroadcast=unbroadcast)
        out = [d if d in self.dims or unbroadcast else Dim(1, name=f"{d.name}_bc_dim1", kind=d.kind) for d in dims]
        return self._new(out, raw)

    def copy_compatible_to(
        self, data: Tensor, add_dims: bool = True, unbroadcast: bool = False, **_options: Any
    ) -> Tensor:
        """Aligned with the dims of another tensor, whose feature dim it takes."""
        result = self.copy_compatible_to_dims(data.dims, add_dims=add_dims, unbroadcast=unbroadcast)
        result = result.copy()
        result.feature_dim = data.feature_dim if data.feature_dim in result.dims else None
        return result

    def copy_masked(self, mask_value: Any, *, dims: Sequence[Dim] | None = None, allow_int: Any = None) -> Tensor:
        """Padding of all dynamic axes (or of `dims`) set to `mask_value`.

        An axis whose sizes depend on axes that the tensor lacks has no padding here: the tensor itself comes back.
        """
        from returnn_hydra.frontend.elementwise import where

        result = cast("Tensor", self)
        if self.dtype == "bool":
            mask_value = bool(mask_value)
        for dim in self.dims if dims is None else dims:
            if dim.need_masking():
                mask = dim.get_mask(device=self.device)
                if all(axis in self.dims for axis in mask.dims):
                    result = where(mask, result, mask_value)
        return result

    def copy_add_dim_by_tag(self, dim_tag: Dim, unbroadcast: bool = False, axis: int | None = None) -> Tensor:
        """With one more dim; by default the batch dim comes first, lengths after other lengths, all else last."""
        position = len(self.dims) if axis is None else axis
        if axis is None and dim_tag.is_batch_dim():
            position = 0
        elif axis is None and dim_tag.is_dynamic():
            position = max((n + 1 for n, dim in enumerate(self.dims) if dim.is_dynamic()), default=position)
        return self.copy_compatible_to_dims(
            [*self.dims[:position], dim_tag, *self.dims[position:]], unbroadcast=unbroadcast
        )

    def copy_add_batch_dim(self, batch_dim_axis: int = 0, batch: Any = None, dim_tag: Dim | None = None) -> Tensor:
        """With a batch axis."""
        return self.copy_add_dim_by_tag(dim_tag or batch_dim, unbroadcast=True, axis=batch_dim_axis)

    def copy_swap_axes(self, axis1: int, axis2: int) -> Tensor:
        order = list(range(len(self.dims)))
        order[axis1], order[axis2] = order[axis2], order[axis1]
        return self.copy_transpose(order)

    def copy_move_axis(self, old_axis: int, new_axis: int) -> Tensor:
        order = [n for n in range(len(self.dims)) if n != old_axis % len(self.dims)]
        order.insert(new_axis % len(self.dims), old_axis % len(self.dims))
        return self.copy_transpose(order)

    def copy_with_feature_last(self) -> Tensor:
        axis = self.feature_dim_axis
        if axis is None:
            raise ValueError(f"{self} has no feature axis")
        return self.copy_move_axis(axis, -1)

    def copy_as_batch_major(self) -> Tensor:
        """The batch axis first."""
        axis = self.batch_dim_axis
        if axis is None:
            raise ValueError(f"{self} has no batch axis")
        return self.copy_move_axis(axis, 0)

    def copy_as_time_major(self) -> Tensor:
        """The time axis first."""
        return self.copy_move_axis(self.dims.index(self.get_time_dim_tag()), 0)

    def copy_as_batch_spatial_major(self) -> Tensor:
        """Batch first, then the spatial axes, then features."""
        new = self.copy_as_batch_major()
        return new.copy_with_feature_last() if new.have_feature_axis() else new

    def copy_as_time_batch_major(self) -> Tensor:
        return self.copy_as_batch_major().copy_as_time_major()

    def copy_squeeze_axes(self, axes: Sequence[int]) -> Tensor:
        """Without these axes, which have size 1."""
        kept = [n for n in range(len(self.dims)) if n not in axes]
        raw = None if self.raw_tensor is None else self.raw_tensor.squeeze(tuple(axes))
        return self._new([self.dims[n] for n in kept], raw)
