"""Tensors with named axes. The values are a torch tensor (or a numpy array in the forward callback)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.tensor_older import OlderTensorMethods
from returnn_hydra.frontend.tensor_template import NotSpecified, set_vocab, template_from_options, vocabulary


def dtype_name(raw: Any) -> str:
    """The dtype of a torch tensor or numpy array as text: "float32"; "string" for text."""
    if isinstance(raw, torch.Tensor):
        return str(raw.dtype).removeprefix("torch.")
    return "string" if raw.dtype.kind in "OSU" else str(raw.dtype)


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype of that name.

    Raises:
        ValueError: there is none.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"'{name}' is no dtype of torch")
    return dtype


class Tensor(OlderTensorMethods):
    """Values with named axes.

    Args:
        name: for messages.
        dims: one per axis.
        dtype: "float32", "int32", "bool", "string", ...
        sparse_dim: the values are class indices of this dim.
        feature_dim: which of the dims is the feature axis.
        raw_tensor: the values; None: a template.
        options: RETURNN's older way to say what the axes are (dim, shape, sparse, dim_tags, ...), see the
            documentation's
            extern_data.

    Raises:
        ValueError: the values do not fit to dims or dtype.
    """

    size_dtype = "int32"
    packed_dims: Sequence[Dim] | None = None
    """Of a tensor from `rf.pack`: the dims that were packed."""
    __hash__ = object.__hash__

    def __init__(
        self,
        name: str,
        dims: Sequence[Dim] | None = None,
        dtype: str | None = None,
        *,
        sparse_dim: Dim | None = None,
        feature_dim: Dim | None = None,
        feature_dim_axis: Any = NotSpecified,
        raw_tensor: Any = None,
        version: int | None = None,
        available_for_inference: bool = True,
        **options: Any,
    ) -> None:
        self.name = name
        self._raw: Any = None
        self.batch: Any = options.pop("batch", None)
        self.beam: Any = options.pop("beam", None)
        self.control_flow_ctx: Any = options.pop("control_flow_ctx", None)
        self.available_for_inference = available_for_inference
        self._time_dim: Dim | None = None
        raw_tensor = options.pop("placeholder", None) if raw_tensor is None else raw_tensor
        if dims is not None:
            self._set_dims(name, list(dims), dtype, sparse_dim, feature_dim, feature_dim_axis, options)
            self.version = 2 if version is None else version
        else:
            template = template_from_options(name, dtype, sparse_dim, feature_dim, feature_dim_axis, options)
            self.dims, self.dtype = template.dims, template.dtype
            self.sparse_dim, self.feature_dim = template.sparse_dim, template.feature_dim
            self._time_dim, self.version = template.time_dim, template.version
        if raw_tensor is not None:
            self.raw_tensor = raw_tensor

    def _set_dims(
        self,
        name: str,
        dims: list[Dim],
        dtype: str | None,
        sparse_dim: Dim | None,
        feature_dim: Dim | None,
        feature_dim_axis: Any,
        options: dict[str, Any],
    ) -> None:
        if not all(isinstance(d, Dim) for d in dims):
            raise TypeError(f"'{name}': dims must be Dim objects, not {dims}")
        if dtype is None:
            raise ValueError(f"'{name}': dtype must be given with dims")
        time_axis = options.pop("time_dim_axis", None)
        vocab = vocabulary(name, options.pop("vocab", None))
        sparse = options.pop("sparse", None)
        if sparse and sparse_dim is None:
            sparse_dim = Dim(options.pop("dim", None), name=f"{name}:sparse-dim", kind=Dim.Types.Feature)
        set_vocab(sparse_dim, vocab)
        options.pop("dim", None)
        if options:
            raise TypeError(f"'{name}': unknown options {sorted(options)}; with dims, the axes are given already")
        self.dims, self.dtype, self.sparse_dim = tuple(dims), dtype, sparse_dim
        if feature_dim is None and isinstance(feature_dim_axis, int):
            feature_dim = dims[feature_dim_axis]
        if feature_dim is not None and feature_dim not in dims:
            raise ValueError(f"'{name}': feature_dim {feature_dim} is not among its dims {dims}")
        self.feature_dim = feature_dim
        self._time_dim = dims[time_axis] if isinstance(time_axis, int) else None

    @property
    def raw_tensor(self) -> Any:
        """The values: a torch tensor, or a numpy array in the forward callback; None in a template."""
        return self._raw

    @raw_tensor.setter
    def raw_tensor(self, value: Any) -> None:
        if value is not None:
            self._check(value)
        self._raw = value

    placeholder = raw_tensor

    def _check(self, raw: Any) -> None:
        if not isinstance(raw, (torch.Tensor, np.ndarray, np.generic)):
            raise TypeError(
                f"'{self.name}': raw_tensor must be a torch tensor or numpy array, not {type(raw).__name__}"
            )
        if raw.ndim != len(self.dims):
            raise ValueError(f"'{self.name}': raw tensor of shape {tuple(raw.shape)} for dims {list(self.dims)}")
        if dtype_name(raw) != self.dtype:
            raise ValueError(f"'{self.name}': raw tensor is {dtype_name(raw)}, the tensor is declared {self.dtype}")
        for axis, (dim, size) in enumerate(zip(self.dims, raw.shape, strict=True)):
            if dim.dimension is not None and dim.dimension != size:
                raise ValueError(f"'{self.name}': axis {axis} has size {size}, but {dim} has {dim.dimension}")

    def reset(self) -> None:
        """Forget the values."""
        self._raw = None

    def get_kwargs(self, *, include_special_axes: bool = True) -> dict[str, Any]:
        """Arguments that make an equal template."""
        result: dict[str, Any] = {"name": self.name, "dims": self.dims, "dtype": self.dtype}
        for key, value in (("sparse_dim", self.sparse_dim), ("feature_dim", self.feature_dim)):
            if value is not None:
                result[key] = value
        return result

    def sanity_check(self, **_options: Any) -> None:
        """Check the values against dims and dtype again (dims may have got their sizes meanwhile)."""
        if self._raw is not None:
            self._check(self._raw)

    def __repr__(self) -> str:
        parts = [repr(self.name), f"[{self.get_batch_axes_short_description()}]"]
        if self.dtype != "float32":
            parts.append(f"dtype={self.dtype!r}")
        if self.sparse_dim is not None:
            parts.append(f"sparse_dim={self.sparse_dim}")
        return f"{type(self).__name__ if type(self) is not Tensor else 'Tensor'}{{{', '.join(parts)}}}"

    # --- the run context ----------------------------------------------------------------------------------------

    def mark_as_loss(self, name: str, **options: Any) -> None:
        """See `RunCtx.mark_as_loss`."""
        from returnn_hydra.frontend.run_ctx import get_run_ctx

        get_run_ctx().mark_as_loss(self, name, **options)

    def mark_as_output(self, name: str, *, shape: Sequence[Dim] | None = None) -> None:
        """See `RunCtx.mark_as_output`."""
        from returnn_hydra.frontend.run_ctx import get_run_ctx

        get_run_ctx().mark_as_output(self, name, dims=shape)

    def mark_as_default_output(self, *, shape: Sequence[Dim] | None = None) -> None:
        """See `RunCtx.mark_as_default_output`."""
        from returnn_hydra.frontend.run_ctx import get_run_ctx

        get_run_ctx().mark_as_default_output(self, shape=shape)

    # --- operators ----------------------------------------------------------------------------------------------

    def _combine(self, kind: str, other: Any, reverse: bool = False) -> Tensor:
        from returnn_hydra.frontend.elementwise import combine

        return combine(other, kind, self) if reverse else combine(self, kind, other)

    def _compare(self, kind: str, other: Any) -> Tensor:
        from returnn_hydra.frontend.elementwise import compare

        return compare(self, kind, other)

    def __add__(self, other: Any) -> Tensor:
        return self._combine("add", other)

    def __radd__(self, other: Any) -> Tensor:
        return self._combine("add", other, True)

    def __sub__(self, other: Any) -> Tensor:
        return self._combine("sub", other)

    def __rsub__(self, other: Any) -> Tensor:
        return self._combine("sub", other, True)

    def __mul__(self, other: Any) -> Tensor:
        return self._combine("mul", other)

    def __rmul__(self, other: Any) -> Tensor:
        return self._combine("mul", other, True)

    def __truediv__(self, other: Any) -> Tensor:
        return self._combine("truediv", other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return self._combine("truediv", other, True)

    def __floordiv__(self, other: Any) -> Tensor:
        return self._combine("floordiv", other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return self._combine("floordiv", other, True)

    def __mod__(self, other: Any) -> Tensor:
        return self._combine("mod", other)

    def __rmod__(self, other: Any) -> Tensor:
        return self._combine("mod", other, True)

    def __pow__(self, other: Any) -> Tensor:
        return self._combine("pow", other)

    def __rpow__(self, other: Any) -> Tensor:
        return self._combine("pow", other, True)

    def __and__(self, other: Any) -> Tensor:
        return self._combine("logical_and", other)

    def __rand__(self, other: Any) -> Tensor:
        return self._combine("logical_and", other, True)

    def __or__(self, other: Any) -> Tensor:
        return self._combine("logical_or", other)

    def __ror__(self, other: Any) -> Tensor:
        return self._combine("logical_or", other, True)

    def __eq__(self, other: object) -> Any:
        return False if other is None else self._compare("==", other)

    def __ne__(self, other: object) -> Any:
        return True if other is None else self._compare("!=", other)

    def __lt__(self, other: Any) -> Tensor:
        return self._compare("<", other)

    def __le__(self, other: Any) -> Tensor:
        return self._compare("<=", other)

    def __gt__(self, other: Any) -> Tensor:
        return self._compare(">", other)

    def __ge__(self, other: Any) -> Tensor:
        return self._compare(">=", other)

    def __neg__(self) -> Tensor:
        return self._new(self.dims, -self._raw, name="neg")

    def __invert__(self) -> Tensor:
        return self._new(self.dims, ~self._raw, name="logical_not")

    def __abs__(self) -> Tensor:
        return self._new(self.dims, self._raw.abs(), name="abs")

    def __bool__(self) -> bool:
        """Of a scalar with a value.

        Raises:
            ValueError: there are several values.
        """
        if self._raw is None:
            return True
        if self.dims:
            raise ValueError(f"{self} has no single truth value; use rf.reduce_any or rf.reduce_all, or `is not None`")
        return bool(self._raw)

    def __int__(self) -> int:
        return int(self._raw)

    def __float__(self) -> float:
        return float(self._raw)
