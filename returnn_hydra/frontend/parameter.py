"""Parameters: tensors that a module learns or (auxiliary) keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from returnn_hydra.frontend.ambient import get_default_device, get_default_float_dtype, is_float_dtype
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.tensor import Tensor, torch_dtype


class Parameter(Tensor):
    """A tensor that belongs to a module.

    Args:
        dims_or_tensor: its dims, or a tensor to take dims and dtype from.
        trainable: None: by the dtype and `auxiliary`.
        auxiliary: kept and saved but not learned (a running mean).
        non_critical_for_restore: a checkpoint may lack it.
        weight_decay: factor on the optimizer's weight decay.
        initial: `rf.init...` or a number; default 0.
    """

    def __init__(
        self,
        dims_or_tensor: Sequence[Dim] | Tensor | None = None,
        dtype: str | None = None,
        *,
        dims: Sequence[Dim] | None = None,
        sparse_dim: Dim | None = None,
        trainable: bool | None = None,
        auxiliary: bool = False,
        non_critical_for_restore: bool = False,
        weight_decay: float | None = 0.0,
        initial: Any = None,
        raw_tensor: torch.Tensor | None = None,
        device: str | None = None,
    ) -> None:
        if isinstance(dims_or_tensor, Tensor):
            dims, dtype, sparse_dim = dims_or_tensor.dims, dims_or_tensor.dtype, dims_or_tensor.sparse_dim
        dims = list(dims if dims is not None else dims_or_tensor or ())  # type: ignore[arg-type]
        unknown = [d for d in dims if d.dimension is None]
        if unknown:
            raise ValueError(f"rf.Parameter: dims must have static sizes, {unknown} have none")
        dtype = dtype or get_default_float_dtype()
        super().__init__("parameter", dims=dims, dtype=dtype, sparse_dim=sparse_dim)
        if raw_tensor is None:
            raw_tensor = torch.zeros(
                [d.get_dim_value() for d in dims], dtype=torch_dtype(dtype), device=device or get_default_device()
            )
        self._trainable = trainable
        self._auxiliary = auxiliary
        self._initial: Any = None
        self.non_critical_for_restore = non_critical_for_restore
        self.weight_decay = weight_decay
        self.raw_tensor = torch.nn.Parameter(raw_tensor, requires_grad=self._wants_gradient())
        if initial is not None:
            self.initial = initial

    def _wants_gradient(self) -> bool:
        if self._trainable is not None:
            return self._trainable
        return is_float_dtype(self.dtype) and not self._auxiliary

    @property
    def initial(self) -> Any:
        """What it was initialised with; setting it initialises it."""
        return self._initial

    @initial.setter
    def initial(self, value: Any) -> None:
        from returnn_hydra.frontend.init import ParamInit

        self._initial = value
        if value is None:
            return
        if isinstance(value, ParamInit):
            value = value(self.dims, self.dtype, device=self.device)
        raw = value.copy_compatible_to_dims_raw(self.dims) if isinstance(value, Tensor) else value
        with torch.no_grad():
            self.raw_tensor.copy_(torch.as_tensor(raw, dtype=self.raw_tensor.dtype))

    @property
    def trainable(self) -> bool | None:
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool | None) -> None:
        self._trainable = value
        self.raw_tensor.requires_grad_(self._wants_gradient())

    @property
    def auxiliary(self) -> bool:
        return self._auxiliary

    @auxiliary.setter
    def auxiliary(self, value: bool) -> None:
        self._auxiliary = value
        self.raw_tensor.requires_grad_(self._wants_gradient())

    def assign(self, value: Any) -> None:
        """Overwrite the values."""
        with torch.no_grad():
            self.raw_tensor.copy_(self._raw_of(value))

    def assign_add(self, value: Any) -> None:
        """Add to the values."""
        with torch.no_grad():
            self.raw_tensor.add_(self._raw_of(value))

    def _raw_of(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.copy_compatible_to_dims_raw(self.dims).detach()
        return torch.as_tensor(value, dtype=self.raw_tensor.dtype, device=self.raw_tensor.device)

    def copy_as_parameter(self) -> Parameter:
        """A new parameter with the same dims and kind, 0 everywhere."""
        return Parameter(
            list(self.dims),
            self.dtype,
            sparse_dim=self.sparse_dim,
            trainable=self._trainable,
            auxiliary=self._auxiliary,
        )

    def to(self, *, device: str | None = None, dtype: str | None = None) -> None:
        """Move in place."""
        with torch.no_grad():
            moved = self.raw_tensor.to(device=device, dtype=torch_dtype(dtype) if dtype else None)
        if dtype:
            self.dtype = dtype
        self.raw_tensor = torch.nn.Parameter(moved, requires_grad=self._wants_gradient())
