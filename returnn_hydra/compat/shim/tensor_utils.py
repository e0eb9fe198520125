"""returnn.tensor.utils, returnn.torch.data.tensor_utils: random values, and from numpy to torch and back, in place."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from returnn_hydra.frontend.dim import Dim, batch_dim
from returnn_hydra.frontend.tensor import Tensor, dtype_name
from returnn_hydra.frontend.tensor_dict import TensorDict

__all__ = [
    "tensor_dict_fill_random_numpy_",
    "tensor_dict_numpy_to_torch_",
    "tensor_dict_torch_to_numpy_",
    "tensor_fill_random_numpy_",
    "tensor_numpy_to_torch_",
    "tensor_torch_to_numpy_",
]


def tensor_dict_numpy_to_torch_(x: TensorDict) -> None:
    """All values, and the lengths of all dims."""
    for value in x.values():
        tensor_numpy_to_torch_(value)


def tensor_numpy_to_torch_(x: Tensor) -> None:
    """The values, and the lengths of all dims; text stays as it is."""
    for dim in x.dims:
        if dim.dyn_size_ext is not None and dim.dyn_size_ext is not x:
            tensor_numpy_to_torch_(dim.dyn_size_ext)
    if x.raw_tensor is not None and not isinstance(x.raw_tensor, torch.Tensor) and x.dtype != "string":
        x.raw_tensor = torch.as_tensor(x.raw_tensor)


def tensor_dict_torch_to_numpy_(x: TensorDict) -> None:
    """All values, and the lengths of all dims."""
    for value in x.values():
        tensor_torch_to_numpy_(value)


def tensor_torch_to_numpy_(x: Tensor) -> None:
    """The values, and the lengths of all dims."""
    for dim in x.dims:
        if dim.dyn_size_ext is not None and dim.dyn_size_ext is not x:
            tensor_torch_to_numpy_(dim.dyn_size_ext)
    if isinstance(x.raw_tensor, torch.Tensor):
        raw = x.raw_tensor.detach().cpu()
        x.raw_tensor = (raw.float() if raw.dtype == torch.bfloat16 else raw).numpy()
        x.dtype = dtype_name(x.raw_tensor)


def tensor_dict_fill_random_numpy_(
    tensor_dict: TensorDict,
    *,
    rnd: int | np.random.RandomState = 42,
    dyn_dim_max_sizes: Mapping[Dim, int] | None = None,
    dyn_dim_min_sizes: Mapping[Dim, int] | None = None,
) -> None:
    """Random values for every template; dims without sizes get random ones."""
    random = np.random.RandomState(rnd) if isinstance(rnd, int) else rnd
    for value in tensor_dict.values():
        tensor_fill_random_numpy_(
            value, rnd=random, dyn_dim_max_sizes=dyn_dim_max_sizes, dyn_dim_min_sizes=dyn_dim_min_sizes
        )


def tensor_fill_random_numpy_(
    x: Tensor,
    *,
    min_val: int = 0,
    max_val: int | None = None,
    rnd: np.random.RandomState | None = None,
    dyn_dim_max_sizes: Mapping[Dim, int] | None = None,
    dyn_dim_min_sizes: Mapping[Dim, int] | None = None,
) -> bool:
    """Random values where there are none; returns whether something was filled.

    The draws are RETURNN's, so that one `rnd` gives the same numbers there: first the sizes of the dims, in order, then
    the values. Integers are from `min_val` to `max_val` (default: a random one from 5 to 19; for classes the last
    class), floats are normal. A dim in `dyn_dim_max_sizes` has an entry of that size.
    """
    random = np.random.mtrand._rand if rnd is None else rnd
    largest, smallest = dyn_dim_max_sizes or {}, dyn_dim_min_sizes or {}
    filled = False
    for dim in x.dims:
        filled |= _fill_sizes(dim, random, largest, smallest)
    if isinstance(x.raw_tensor, np.ndarray):
        return filled
    x.reset()
    x.raw_tensor = _random_values(x, random, min_val, max_val)
    return True


def _random_values(x: Tensor, random: np.random.RandomState, min_val: int, max_val: int | None) -> np.ndarray:
    shape = [dim.get_dim_value() for dim in x.dims]
    if x.dtype.startswith("int"):
        max_val = random.randint(5, 20) if max_val is None else max_val
        if x.sparse_dim is not None and x.sparse_dim.dimension is not None:
            max_val = x.sparse_dim.dimension - 1
        return np.asarray(random.randint(min_val, max_val + 1, size=shape, dtype=np.dtype(x.dtype)))
    if x.dtype == "bool":
        return np.asarray(random.randint(0, 2, size=shape, dtype="bool"))
    values = np.asarray(random.normal(0.0, 1.0, size=shape))
    if x.dtype.startswith("complex"):
        values = values + 1j * np.asarray(random.normal(0.0, 1.0, size=shape))
    return values.astype(x.dtype)


def _fill_sizes(
    dim: Dim, random: np.random.RandomState, largest: Mapping[Dim, int], smallest: Mapping[Dim, int]
) -> bool:
    """Random sizes for a dim that has none yet, and first for the dims that they depend on."""
    if dim.dimension is not None:
        return False
    sizes = dim.dyn_size_ext
    if sizes is None:
        sizes = Tensor(dim.name, dims=[] if dim.is_batch_dim() else [batch_dim], dtype="int32")
    low = smallest.get(dim, min(2, largest.get(dim, 2)))
    filled = tensor_fill_random_numpy_(
        sizes, min_val=low, max_val=largest.get(dim), rnd=random, dyn_dim_max_sizes=largest
    )
    if filled and dim in largest:
        raw = sizes.raw_tensor = np.array(sizes.raw_tensor)
        place = random.randint(0, raw.size)
        raw.flat[place] = largest[dim]
        if dim in smallest and raw.size > 1:
            other = random.randint(0, raw.size - 1)
            raw.flat[other + (other >= place)] = smallest[dim]
    elif filled and dim in smallest:
        raise ValueError(f"{dim} is in dyn_dim_min_sizes, so it must also be in dyn_dim_max_sizes")
    dim.dyn_size_ext = sizes
    return filled
