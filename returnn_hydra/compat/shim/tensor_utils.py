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
_BATCH_SIZE = 3
_LONGEST = 7


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
    """Random values (classes within the sparse dim, normal floats); returns whether there was something to fill."""
    random = np.random.RandomState(42) if rnd is None else rnd
    for dim in x.dims:
        _fill_sizes(dim, random, (dyn_dim_min_sizes or {}).get(dim, 1), (dyn_dim_max_sizes or {}).get(dim, _LONGEST))
    if x.raw_tensor is not None:
        return False
    shape = [dim.get_dim_value() for dim in x.dims]
    if x.dtype == "bool":
        x.raw_tensor = random.randint(0, 2, size=shape).astype(bool)
    elif x.dtype.startswith(("int", "uint")):
        if max_val is None:
            max_val = x.sparse_dim.dimension if x.sparse_dim is not None else 10
        x.raw_tensor = np.asarray(random.randint(min_val, max_val, size=shape), dtype=x.dtype)
    else:
        x.raw_tensor = np.asarray(random.standard_normal(shape), dtype=x.dtype)
    return True


def _fill_sizes(dim: Dim, random: np.random.RandomState, shortest: int, longest: int) -> None:
    if dim.is_dim_known() and (dim.dyn_size_ext is None or dim.dyn_size_ext.raw_tensor is not None):
        return
    if dim.is_batch_dim():
        size = Tensor("batch", dims=[], dtype="int32", raw_tensor=np.array(_BATCH_SIZE, dtype="int32"))
    else:
        dims = (batch_dim,) if dim.dyn_size_ext is None else dim.dyn_size_ext.dims
        for other in dims:
            _fill_sizes(other, random, 1, _LONGEST)
        shape = [other.get_dim_value() for other in dims]
        lengths = np.asarray(random.randint(shortest, longest + 1, size=shape), dtype="int32")
        if lengths.ndim:
            lengths.flat[random.randint(lengths.size)] = longest
        size = Tensor(dim.name or "time", dims=dims, dtype="int32", raw_tensor=lengths)
    dim.dyn_size_ext = size
