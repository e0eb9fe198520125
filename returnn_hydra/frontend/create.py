"""New tensors: constants, ranges, masks, copies to other devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from returnn_hydra.frontend.ambient import get_default_device, get_default_float_dtype, get_default_int_dtype
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.tensor import Tensor, dtype_name, torch_dtype


def _scalar_dtype(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "bool"
    if isinstance(value, (int, np.integer)):
        return get_default_int_dtype()
    return "complex64" if isinstance(value, complex) else get_default_float_dtype()


def convert_to_tensor(
    value: Any,
    *,
    dims: Sequence[Dim] | None = None,
    dtype: str | None = None,
    sparse_dim: Dim | None = None,
    feature_dim: Dim | None = None,
    shape: Sequence[Dim] | None = None,
    device: str | None = None,
    keep_scalar_on_cpu: bool = False,
    name: str | None = None,
    _backend: Any = None,
) -> Tensor:
    """A Tensor from a number, a list, a numpy array or a torch tensor; a Tensor stays one.

    Args:
        _backend: `NumpyBackend`: the values are a numpy array, for data functions.

    Raises:
        ValueError: number of dims and of axes differ.
    """
    dims = shape if dims is None else dims
    if getattr(_backend, "name", None) == "numpy":
        options: dict[str, Any] = {"dims": dims, "dtype": dtype, "sparse_dim": sparse_dim, "feature_dim": feature_dim}
        made = convert_to_tensor(value, **options, device="cpu", name=name)
        out = made.copy_template()
        out.raw_tensor = made.raw_tensor.detach().numpy()
        return out
    if isinstance(value, Tensor):
        return value if dtype in (None, value.dtype) else value._new(
            value.dims, value.raw_tensor.to(torch_dtype(str(dtype))), dtype=dtype
        )  # fmt: skip
    if isinstance(value, (int, float, bool, complex, np.generic)):
        raw = torch.tensor(value, dtype=torch_dtype(dtype or _scalar_dtype(value)))
        if dims:
            return full(
                dims=dims, fill_value=value, dtype=dtype, device=device, sparse_dim=sparse_dim, feature_dim=feature_dim
            )
        raw = raw if keep_scalar_on_cpu else raw.to(device or get_default_device() or "cpu")
    elif isinstance(value, torch.Tensor):
        raw = value
    else:
        raw = torch.as_tensor(np.asarray(value), device=device or get_default_device())
    if dtype is not None:
        raw = raw.to(torch_dtype(dtype))
    if device is not None:
        raw = raw.to(device)
    name = name or ("raw_tensor" if isinstance(value, torch.Tensor) else "const")
    if dims is None:
        dims = [Dim(size, name=f"{name}_dim{axis}") for axis, size in enumerate(raw.shape)]
    return Tensor(
        name, dims=dims, dtype=dtype_name(raw), sparse_dim=sparse_dim, feature_dim=feature_dim, raw_tensor=raw
    )


def full(
    *,
    dims: Sequence[Dim],
    fill_value: Any,
    dtype: str | None = None,
    device: str | None = None,
    sparse_dim: Dim | None = None,
    feature_dim: Dim | None = None,
    like: Any = None,
) -> Tensor:
    """One value everywhere."""
    if like is not None and device is None:
        device = like.device
    if isinstance(fill_value, Tensor):
        if fill_value.dims:
            raise ValueError(f"full: fill_value must be a scalar, not {fill_value}")
        dtype, fill_value = dtype or fill_value.dtype, fill_value.raw_tensor.item()
    dtype = dtype or _scalar_dtype(fill_value)
    shape = [d.get_dim_value() for d in dims]
    raw = torch.full(shape, fill_value, dtype=torch_dtype(dtype), device=device or get_default_device())
    return Tensor("full", dims=dims, dtype=dtype, sparse_dim=sparse_dim, feature_dim=feature_dim, raw_tensor=raw)


fill = full


def constant(fill_value: Any, *, dims: Sequence[Dim], **options: Any) -> Tensor:
    """One value everywhere."""
    return full(dims=dims, fill_value=fill_value, **options)


def zeros(dims: Sequence[Dim], *, dtype: str | None = None, **options: Any) -> Tensor:
    """0 everywhere."""
    return full(dims=dims, fill_value=0, dtype=dtype or get_default_float_dtype(), **options)


def ones(dims: Sequence[Dim], *, dtype: str | None = None, **options: Any) -> Tensor:
    """1 everywhere."""
    return full(dims=dims, fill_value=1, dtype=dtype or get_default_float_dtype(), **options)


def zeros_like(other: Tensor) -> Tensor:
    """0 everywhere, otherwise like `other`."""
    return other._new(other.dims, torch.zeros_like(other.raw_tensor))


def ones_like(other: Tensor) -> Tensor:
    """1 everywhere, otherwise like `other`."""
    return other._new(other.dims, torch.ones_like(other.raw_tensor))


def copy(tensor: Tensor) -> Tensor:
    """A copy of the values."""
    return tensor._new(tensor.dims, tensor.raw_tensor.clone())


def copy_to_device(x: Tensor, device: str | None = None) -> Tensor:
    """The values on another device (default: the default device)."""
    device = device or get_default_device()
    if x.raw_tensor is None or device in (None, x.device):
        return x
    return x._new(x.dims, x.raw_tensor.to(device))


def range_over_dim(dim: Dim, *, dtype: str | None = None, device: str | None = None) -> Tensor:
    """0, 1, ... along a dim."""
    if dtype is None:
        dtype = dim.dyn_size_ext.dtype if dim.dyn_size_ext is not None else "int32"
    raw = torch.arange(dim.get_dim_value(), dtype=torch_dtype(dtype), device=device or get_default_device())
    sparse_dim = dim if not dtype.startswith(("float", "bfloat")) else None
    return Tensor("range", dims=[dim], dtype=dtype, sparse_dim=sparse_dim, raw_tensor=raw)


def range_over_dim_strided(
    dim: Dim, *, stride: int, out_dim: Dim | None = None, dtype: str | None = None, device: str | None = None
) -> tuple[Tensor, Dim]:
    """0, stride, 2 stride, ... below the size of a dim."""
    new = dim.ceildiv_right(stride)
    if out_dim is not None:
        out_dim.declare_same_as(new)
    out_dim = out_dim or new
    positions = range_over_dim(out_dim, dtype=dtype, device=device) * stride
    positions.sparse_dim = out_dim
    return positions, out_dim


def range_over_merged_dims(dims: Sequence[Dim], *, dtype: str | None = None, device: str | None = None) -> Tensor:
    """0, 1, ... over several static dims at once, the last one running fastest."""
    sizes = [d.get_dim_value() for d in dims]
    raw = torch.arange(int(np.prod(sizes)), dtype=torch_dtype(dtype or "int32"), device=device or get_default_device())
    merged = Dim(raw.numel(), name="merged")
    dtype = dtype or "int32"
    return Tensor("range", dims=list(dims), dtype=dtype, sparse_dim=merged, raw_tensor=raw.reshape(sizes))


def linspace_over_dim(
    dim: Dim, start: Any = 0.0, end: Any = 1.0, *, dtype: str | None = None, device: str | None = None
) -> Tensor:
    """Evenly spaced values from start on along a dim; `end` would be the next one."""
    steps = range_over_dim(dim, dtype=dtype or get_default_float_dtype(), device=device)
    size = dim.get_dim_value()
    return steps * ((end - start) / max(size, 1)) + start


def sequence_mask(dims: Dim | Sequence[Dim], *, device: str | None = None, like: Any = None) -> Tensor:
    """True for real frames of these dims, which come first, as in RETURNN: (T, B) for the time dim alone."""
    from returnn_hydra.frontend.elementwise import combine_bc

    dims = [dims] if isinstance(dims, Dim) else list(dims)
    device = device or (like.device if like is not None else get_default_device())
    masks = [d.get_mask(dim_order=dims, device=device) for d in dims if d.need_masking()]
    if not masks:
        return full(dims=[], fill_value=True, dtype="bool", device=device)
    result = masks[0]
    for mask in masks[1:]:
        result = combine_bc(result, "logical_and", mask)
    return result


def last_frame_position_of_dim(
    dim: Dim, *, device: str | None = None, allow_scalar_on_cpu: bool = True
) -> int | Tensor:
    """Index of the last real frame (0 for an empty sequence); an int for a static dim."""
    from returnn_hydra.frontend.elementwise import maximum

    if dim.dimension is not None:
        return max(dim.dimension - 1, 0)
    position = maximum(dim.get_size_tensor(device=device or get_default_device()) - 1, 0)
    position.sparse_dim = dim
    return position


def num_elements_of_shape(
    dims: Dim | Sequence[Dim], *, use_mask: bool = True, device: str | None = None, **_options: Any
) -> int | Tensor:
    """Number of values of a tensor with these dims; padding counts only with `use_mask=False`."""
    from returnn_hydra.frontend.elementwise import combine_bc
    from returnn_hydra.frontend.reduce import reduce_sum

    dims = [dims] if isinstance(dims, Dim) else list(dims)
    masked = [d for d in dims if use_mask and d.need_masking()]
    factor = 1
    covered: list[Dim] = []
    product: Tensor | None = None
    for dim in masked:
        lengths = dim.get_size_tensor(device=device)
        product = lengths if product is None else combine_bc(product, "mul", lengths)
    if product is not None:
        inside = [d for d in product.dims if d in dims]
        covered = [*masked, *inside]
        product = reduce_sum(product, axis=inside) if inside else product
    for dim in dims:
        if dim not in covered:
            factor *= dim.get_dim_value()
    return factor if product is None else product if factor == 1 else product * factor


def masked_fraction_of_shape(
    dims: Dim | Sequence[Dim], *, inverse: bool = False, device: str | None = None
) -> int | float | Tensor:
    """Real frames per padded frame; `inverse`: padded per real."""
    real = num_elements_of_shape(dims, device=device)
    padded = num_elements_of_shape(dims, use_mask=False, device=device)
    return padded / real if inverse else real / padded


def set_sparse_dim(source: Tensor, sparse_dim: Dim) -> Tensor:
    """The same values as class indices of that dim."""
    out = source.copy()
    out.sparse_dim = sparse_dim
    return out
