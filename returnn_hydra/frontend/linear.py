"""Linear maps and embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from returnn_hydra.frontend.dim import Dim, dim_match_priority_when_needed
from returnn_hydra.frontend.elementwise import keep_dtype, where
from returnn_hydra.frontend.indexing import gather
from returnn_hydra.frontend.init import Glorot
from returnn_hydra.frontend.module import Module
from returnn_hydra.frontend.parameter import Parameter
from returnn_hydra.frontend.reduce import reduce_sum
from returnn_hydra.frontend.tensor import Tensor, dtype_name


def matmul(a: Tensor, b: Tensor, *, reduce: Dim | Sequence[Dim], use_mask: bool = True) -> Tensor:
    """Sum over the `reduce` dims of a * b; other dims that both have are batch dims.

    Args:
        use_mask: padding of a dynamic `reduce` dim does not count.
    """
    reduce_dims = [reduce] if isinstance(reduce, Dim) else list(reduce)
    only_left, only_right = ([d for d in reduce_dims if d not in t.dims] for t in (b, a))
    if only_left or only_right:
        a, b = reduce_sum(a, axis=only_left), reduce_sum(b, axis=only_right)
        reduce_dims = [d for d in reduce_dims if d in a.dims and d in b.dims]
    reduce_dims = [a.dims[n] for n in a.get_axes_from_description(reduce_dims)]
    if use_mask:
        for dim in reduce_dims:
            if dim.need_masking():
                mask = dim.get_mask(device=a.device)
                a = where(mask, a, 0, allow_broadcast_all_sources=True)
                # Padding may hold nan; 0 * nan would spread it.
                b = where(mask, b, 0, allow_broadcast_all_sources=True) if dim in b.dims else b
    # By axes: a square matrix has one dim twice.
    numbers = [t.get_axes_from_description(reduce_dims) for t in (a, b)]
    left_rest, right_rest = (
        [d for n, d in enumerate(t.dims) if n not in used] for t, used in zip((a, b), numbers, strict=True)
    )
    common = [d for d in left_rest if d in right_rest]
    rows = [d for d in left_rest if d not in common]
    columns = [d for d in right_rest if d not in common]
    reduced = [b.dims[n] for n in numbers[1]]
    reduce_dims = [a.dims[n] for n in numbers[0]]
    left = a.copy_compatible_to_dims_raw([*common, *rows, *reduce_dims])
    right = b.copy_compatible_to_dims_raw([*common, *reduced, *columns])
    n = len(common)
    batch, row_shape = left.shape[:n], left.shape[n : n + len(rows)]
    column_shape = right.shape[n + len(reduce_dims) :]
    inner = math.prod(left.shape[n + len(rows) :])
    left = left.reshape(*batch, math.prod(row_shape), inner)
    right = right.reshape(*batch, inner, math.prod(column_shape))
    if left.dtype != right.dtype and not torch.is_autocast_enabled():
        dtype = torch.promote_types(left.dtype, right.dtype)
        left, right = left.to(dtype), right.to(dtype)
    raw = torch.matmul(left, right).reshape([*batch, *row_shape, *column_shape])
    dims = [*common, *rows, *columns]
    out = Tensor("dot", dims=dims, dtype=dtype_name(raw), raw_tensor=raw)
    features = [d for d in (a.feature_dim, b.feature_dim) if d is not None and d in dims]
    if features and (len(set(features)) == 1 or a.feature_dim not in dims):
        out.feature_dim = features[0]
    return out


dot = matmul


class Linear(Module):
    """y = x W + b.

    Parameters: weight (in, out), bias (out).
    """

    def __init__(self, in_dim: Dim, out_dim: Dim, *, with_bias: bool = True) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.out_dim = out_dim
        self._weight_dims = [dim_match_priority_when_needed(in_dim, out_dim), out_dim]
        self.weight = Parameter(self._weight_dims, initial=Glorot())
        self.with_bias = with_bias
        self.bias = Parameter([out_dim], initial=0.0) if with_bias else None

    def __call__(self, source: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.in_dim not in source.dims:
            raise ValueError(f"Linear: {source} has no dim {self.in_dim}")
        dims = source.remaining_dims(self.in_dim)
        raw = source.copy_compatible_to_dims_raw([*dims, self.in_dim])
        # Read once: every reading of a parameter with weight_dropout draws anew.
        weight = self.weight.copy_compatible_to_dims_raw(self._weight_dims[::-1])
        own_bias = self.bias
        bias = None if own_bias is None else own_bias.raw_tensor
        autocast = torch.is_autocast_enabled(raw.device.type)
        raw = torch.nn.functional.linear(raw, weight, None if autocast else bias)
        dtype = dtype_name(raw)
        if autocast and bias is not None:
            raw = raw + bias
        dims = [*dims, self.out_dim]
        out = Tensor("linear", dims=dims, dtype=dtype_name(raw), feature_dim=self.out_dim, raw_tensor=raw)
        return keep_dtype(out, dtype)


class Embedding(Module):
    """A learned vector per class.

    Parameters: weight (classes, out).
    """

    def __init__(self, in_dim: Dim, out_dim: Dim) -> None:
        super().__init__()
        self.in_dim = in_dim
        self.out_dim = out_dim
        self.weight = Parameter([dim_match_priority_when_needed(in_dim, out_dim), out_dim], initial=Glorot())

    def __call__(self, source: Tensor) -> Tensor:
        """(...) class indices -> (..., out)."""
        if source.sparse_dim is None:
            raise ValueError(f"Embedding: {source} holds no class indices (it has no sparse_dim)")
        if source.sparse_dim != self.in_dim and source.sparse_dim.dimension != self.in_dim.dimension:
            raise ValueError(f"Embedding: classes {source.sparse_dim} of {source}, expected {self.in_dim}")
        out = gather(self.weight, indices=source, axis=self.in_dim)
        out.feature_dim = self.out_dim
        return out
