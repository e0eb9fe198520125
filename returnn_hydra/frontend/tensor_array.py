"""A growing list of tensors with one template."""

from __future__ import annotations

from typing import Any

import torch

from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.tensor import Tensor, dtype_name


class TensorArray:
    """Tensors of the same dims, one after the other. `push_back` gives a new array and leaves the old one as it was."""

    def __init__(self, tensor_template: Tensor, *, capacity: int | None = None, **_options: Any) -> None:
        self.tensor_template = tensor_template.copy_template()
        self._frames: list[Tensor] = []

    @classmethod
    def unstack(cls, tensor: Tensor, *, axis: Dim) -> TensorArray:
        """The frames of a tensor along a dim."""
        number = tensor.get_axis_from_description(axis)
        new = cls(tensor.copy_template_excluding_axis(number))
        dims = [d for n, d in enumerate(tensor.dims) if n != number]
        new._frames = [tensor._new(dims, raw) for raw in tensor.raw_tensor.unbind(number)]
        return new

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int | Tensor) -> Tensor:
        return self._frames[int(index.raw_tensor) if isinstance(index, Tensor) else index]

    def push_back(self, tensor: Tensor) -> TensorArray:
        """One more.

        Raises:
            ValueError: its dims are not the template's.
        """
        if tensor.dims_set != self.tensor_template.dims_set and len(self) == 0:
            self.tensor_template = tensor.copy_template()
        if len(tensor.dims) != len(self.tensor_template.dims):
            raise ValueError(f"TensorArray: {tensor} does not fit to the template {self.tensor_template}")
        new = TensorArray(self.tensor_template)
        new._frames = [*self._frames, tensor]
        return new

    def stack(self, *, axis: Dim) -> Tensor:
        """All of them along a new first dim."""
        dims = self._frames[0].dims if self._frames else self.tensor_template.dims
        if self._frames:
            raw = torch.stack([t.copy_compatible_to_dims_raw(dims) for t in self._frames])
        else:
            dtype = getattr(torch, self.tensor_template.dtype)
            raw = torch.zeros([0, *(d.get_dim_value() for d in dims)], dtype=dtype)
        if axis.dimension is None and not axis.is_dim_known():
            axis.size = len(self)
        template = self._frames[0] if self._frames else self.tensor_template
        return template._new([axis, *dims], raw, name="stack", dtype=dtype_name(raw))
