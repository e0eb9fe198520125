"""Parameters: tensors that a module learns or (auxiliary) keeps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from returnn_hydra.frontend.ambient import (
    ambient,
    ambient_state,
    get_default_array_index_dtype,
    get_default_device,
    get_default_float_dtype,
    is_float_dtype,
)
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.tensor import Tensor, torch_dtype


class Parameter(Tensor):
    """A tensor that belongs to a module.

    Args:
        dims_or_tensor: its dims, or a tensor of its first values, which gives dims and dtype, too.
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
            initial = dims_or_tensor
            dims = initial.dims if dims is None else dims
            dtype, sparse_dim = dtype or initial.dtype, sparse_dim or initial.sparse_dim
        dims = list(dims if dims is not None else dims_or_tensor or ())  # type: ignore[arg-type]
        unknown = [d for d in dims if d.dimension is None]
        if unknown:
            raise ValueError(f"rf.Parameter: dims must have static sizes, {unknown} have none")
        if len({(d, d.match_priority) for d in dims}) < len(dims):
            raise ValueError(f"rf.Parameter: a dim is among {dims} twice; see rf.dim_match_priority_when_needed")
        dtype = dtype or (get_default_array_index_dtype() if sparse_dim else get_default_float_dtype())
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

    def assign_key(
        self, axis: Dim | Sequence[Dim], key: Any, key_dim: Dim | Sequence[Dim | None] | None, value: Any
    ) -> None:
        """Overwrite the part at `key` of an axis (or at several keys of several axes).

        Args:
            key: an index or a slice, of ints or scalar tensors.
            key_dim: the dim of a slice in `value`; None for an index, whose axis `value` lacks.
        """
        axes = [axis] if isinstance(axis, Dim) else list(axis)
        keys = list(key) if isinstance(key, (list, tuple)) else [key]
        key_dims = list(key_dim) if isinstance(key_dim, (list, tuple)) else [key_dim] * len(keys)
        raw_keys: list[Any] = [slice(None)] * len(self.dims)
        dims: list[Dim | None] = list(self.dims)
        for one, part, dim in zip(axes, keys, key_dims, strict=True):
            number = self.get_axis_from_description(one)
            raw_keys[number] = _raw_key(part)
            dims[number] = dim if isinstance(part, slice) else None  # type: ignore[assignment]
        with torch.no_grad():
            raw = value.copy_compatible_to_dims_raw([d for d in dims if d]) if isinstance(value, Tensor) else value
            self.raw_tensor[tuple(raw_keys)] = raw

    def copy_as_parameter(self) -> Parameter:
        """A new parameter with the same dims and kind, 0 everywhere."""
        return Parameter(
            list(self.dims),
            self.dtype,
            sparse_dim=self.sparse_dim,
            trainable=self._trainable,
            auxiliary=self._auxiliary,
            non_critical_for_restore=self.non_critical_for_restore,
            weight_decay=self.weight_decay,
        )

    def __copy__(self) -> Parameter:
        """A parameter of the same kind, initialised anew (see `set_parameter_copy_behavior_ctx`)."""
        if ambient.parameter_copies == "share":
            return self
        new = self.copy_as_parameter()
        new.initial = self.initial
        return new

    def __deepcopy__(self, memo: Any) -> Parameter:
        """As a copy: layers that are copied from one layer begin with values of their own."""
        return self.__copy__()

    def to(self, *, device: str | None = None, dtype: str | None = None) -> None:
        """Move in place."""
        with torch.no_grad():
            moved = self.raw_tensor.to(device=device, dtype=torch_dtype(dtype) if dtype else None)
        if dtype:
            self.dtype = dtype
        self.raw_tensor = torch.nn.Parameter(moved, requires_grad=self._wants_gradient())


def _raw_key(key: Any) -> Any:
    """A key with numbers in place of tensors."""
    if isinstance(key, slice):
        return slice(*(_raw_key(part) for part in (key.start, key.stop, key.step)))
    return int(key.raw_tensor) if isinstance(key, Tensor) else key


@contextlib.contextmanager
def set_parameter_copy_behavior_ctx(mode: str) -> Iterator[None]:
    """What copies of modules do with parameters inside the block.

    Args:
        mode: copy_init: new parameters, initialised anew (the default); share: the same parameters.
    """
    if mode not in ("copy_init", "share"):
        raise ValueError(f"set_parameter_copy_behavior_ctx: unknown mode '{mode}', known are copy_init and share")
    with ambient_state(parameter_copies=mode):
        yield
