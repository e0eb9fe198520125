"""Packed tensors. RETURNN stores them without padding, under the dims of the padded tensor, which is a matter of speed
only: every value is the same. Here they are stored padded, and what `pack` gives only remembers that it was packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.indexing import pack_padded, pad_packed
from returnn_hydra.frontend.tensor import Tensor


def pack(
    source: Tensor,
    *,
    dims: Sequence[Dim] | None = None,
    out_dim: Dim | None = None,
    gap: int = 0,
    align: int = 1,
    total_bound: int | None = None,
) -> Tensor:
    """The same tensor, padding set to 0, marked as packed.

    Args:
        dims: what is packed; default: the dynamic dims, and the dims that their lengths depend on.
        out_dim, gap, align, total_bound: how RETURNN stores it; no value depends on them.

    Raises:
        ValueError: no dim has lengths.
    """
    dims = _dims_to_pack(source) if dims is None else list(dims)
    if not dims:
        raise ValueError(f"pack: {source} has no dims with lengths; give `dims`")
    packed = source.copy_masked(0, dims=[dim for dim in dims if dim in source.dims]).copy()
    packed.packed_dims = tuple(dims)
    return packed


def _dims_to_pack(source: Tensor) -> list[Dim]:
    lengths = [d.dyn_size_ext for d in source.dims]
    outer = [d for length in lengths if length is not None for d in length.dims]
    dynamic = [d for d, length in zip(source.dims, lengths, strict=True) if length is not None]
    return list(dict.fromkeys([*outer, *dynamic]))


def pack_import(
    inner_flat: Tensor, *, batch_dim: Dim, spatial_dim: Dim, packed_dim: Dim, feature_dim: Dim | None = None
) -> Tensor:
    """A packed tensor (batch, spatial, ...) of all frames one after the other (packed, ...)."""
    out = pad_packed(inner_flat, dims=[batch_dim, spatial_dim], in_dim=packed_dim)
    out.feature_dim = feature_dim or inner_flat.feature_dim
    out.packed_dims = (batch_dim, spatial_dim)
    return out


def unpack(source: Tensor) -> Tensor:
    """The tensor without the mark."""
    return source.copy() if is_packed(source) else source


def is_packed(source: Tensor) -> bool:
    """Whether the tensor comes from `pack`; what is computed with one is a plain tensor."""
    return source.packed_dims is not None


def packed_regap(source: Tensor, gap: int, **_options: Any) -> Tensor:
    """The same tensor: there are no gaps here."""
    _packed_dims(source, "packed_regap")
    return source


def packed_flat_content(source: Tensor, *, out_dim: Dim | None = None) -> tuple[Tensor, Dim]:
    """All frames of a packed tensor, one after the other, over one dim."""
    return pack_padded(source, dims=_packed_dims(source, "packed_flat_content"), out_dim=out_dim)


def _packed_dims(source: Tensor, function: str) -> Sequence[Dim]:
    if source.packed_dims is None:
        raise ValueError(f"{function}: {source} is not packed; see rf.pack")
    return source.packed_dims
