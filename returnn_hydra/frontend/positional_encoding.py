"""Encodings of absolute and relative positions."""

from __future__ import annotations

import math
from typing import Any

import torch

from returnn_hydra.frontend.ambient import get_default_device, get_default_float_dtype
from returnn_hydra.frontend.arrays import lengths_dim
from returnn_hydra.frontend.create import convert_to_tensor
from returnn_hydra.frontend.dim import Dim, single_step_dim
from returnn_hydra.frontend.module import Module
from returnn_hydra.frontend.parameter import Parameter
from returnn_hydra.frontend.tensor import Tensor, dtype_name, torch_dtype


def sinusoidal_encoding(indices: Tensor, *, feat_dim: Dim, base: float = 1e4, dtype: str | None = None) -> Tensor:
    """sin(p / base^(i / (n - 1))) for the first half of the features, cos for the second (n = half; Vaswani et al.
    2017)."""
    half = _half(feat_dim)
    return _sinusoidal(indices, feat_dim, math.log(base) / max(half - 1, 1), dtype)


def _half(feat_dim: Dim) -> int:
    size = feat_dim.get_dim_value()
    if size % 2:
        raise ValueError(f"sinusoidal encoding: {feat_dim} must have an even size")
    return size // 2


def geometric_encoding(indices: Tensor, *, feat_dim: Dim, base: float = 1e4, dtype: str | None = None) -> Tensor:
    """sin(p / base^(i / n)), then cos: the variant of rotary and of relative positions."""
    return _sinusoidal(indices, feat_dim, math.log(base) / _half(feat_dim), dtype)


def _sinusoidal(indices: Tensor, feat_dim: Dim, step: float, dtype: str | None) -> Tensor:
    """Sines, then cosines of the indices times exp(-step * i)."""
    half = _half(feat_dim)
    dtype = dtype or get_default_float_dtype()
    device = indices.raw_tensor.device
    scale = torch.exp(torch.arange(half, dtype=torch_dtype(dtype), device=device) * -step)
    angles = indices.raw_tensor.to(torch_dtype(dtype))[..., None] * scale
    raw = torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)
    return Tensor("sin", dims=[*indices.dims, feat_dim], dtype=dtype, feature_dim=feat_dim, raw_tensor=raw)


def _positions(dim: Dim, offset: Any, device: str | None) -> Tensor:
    """0, 1, ... along a dim, shifted; only the offset itself for a single step."""
    device = device or get_default_device()
    shift = convert_to_tensor(0 if offset is None else offset, dtype="int32")
    raw = shift.raw_tensor if device is None else shift.raw_tensor.to(device)
    if dim == single_step_dim:
        return Tensor("position", dims=shift.dims, dtype=dtype_name(raw), raw_tensor=raw)
    raw = raw[..., None] + torch.arange(dim.get_dim_value(), device=raw.device)
    return Tensor("position", dims=[*shift.dims, dim], dtype=dtype_name(raw), raw_tensor=raw)


def sinusoidal_positional_encoding(
    *,
    spatial_dim: Dim,
    feat_dim: Dim,
    offset: int | Tensor | None = None,
    base: float = 1e4,
    dtype: str | None = None,
    device: str | None = None,
) -> Tensor:
    """Sinusoidal encoding of the positions offset, offset + 1, ...; one vector with single_step_dim."""
    return sinusoidal_encoding(_positions(spatial_dim, offset, device), feat_dim=feat_dim, base=base, dtype=dtype)


def rotary_angles(
    *, spatial_dim: Dim, feat_dim: Dim, offset: int | Tensor | None = None, device: str | None = None
) -> Tensor:
    """Sines and cosines for rotary positions (Su et al. 2021)."""
    return geometric_encoding(_positions(spatial_dim, offset, device), feat_dim=feat_dim)


def _relative_positions(
    query_dim: Dim, key_dim: Dim, query_offset: int, device: str | None
) -> tuple[torch.Tensor, Dim]:
    """All values of (key position - query position) in order, and their dim."""
    keys = key_dim.get_dim_value()
    queries = 1 if query_dim == single_step_dim else query_dim.get_dim_value()
    first = -(query_offset + queries - 1)
    positions = torch.arange(first, keys - query_offset, device=device or get_default_device())
    count = convert_to_tensor(len(positions), dtype="int32", device="cpu")
    return positions, lengths_dim("relative-position", count)


def relative_positional_encoding(
    *,
    query_spatial_dim: Dim,
    key_value_spatial_dim: Dim,
    feat_dim: Dim,
    query_offset: int = 0,
    dtype: str | None = None,
    device: str | None = None,
) -> tuple[Tensor, Dim]:
    """Sinusoidal encoding of all relative positions, from key 0 seen by the last query on."""
    raw, dim = _relative_positions(query_spatial_dim, key_value_spatial_dim, int(query_offset), device)
    indices = Tensor("relative", dims=[dim], dtype="int64", raw_tensor=raw)
    return geometric_encoding(indices, feat_dim=feat_dim, dtype=dtype), dim


class LearnedRelativePositionalEncoding(Module):
    """A learned vector per relative position from -clipping to clipping; those beyond take the outermost (Shaw et
    al. 2018).

    Parameters: pos_emb (2 clipping + 1, features); causal: (clipping + 1, features).
    """

    def __init__(self, feat_dim: Dim, *, clipping: int = 16, dtype: str | None = None, causal: bool = False) -> None:
        super().__init__()
        self.feat_dim = feat_dim
        self.clipping = clipping
        self.causal = causal
        self.clipped_spatial_dim = Dim(clipping + 1 if causal else 2 * clipping + 1, name="learned-rel-pos")
        self.pos_emb = Parameter([self.clipped_spatial_dim, feat_dim], dtype)

    def __call__(
        self, *, query_spatial_dim: Dim, key_value_spatial_dim: Dim, query_offset: int | Tensor | None = None
    ) -> tuple[Tensor, Dim]:
        """(2 T - 1, feature) and the dim of the relative positions."""
        offset = int(query_offset.raw_tensor) if isinstance(query_offset, Tensor) else int(query_offset or 0)
        positions, dim = _relative_positions(query_spatial_dim, key_value_spatial_dim, offset, self.pos_emb.device)
        highest = 0 if self.causal else self.clipping
        index = positions.clamp(-self.clipping, highest) + self.clipping
        raw = self.pos_emb.raw_tensor[index]
        out = Tensor(
            "pos_emb", dims=[dim, self.feat_dim], dtype=dtype_name(raw), feature_dim=self.feat_dim, raw_tensor=raw
        )
        return out, dim

    def full_matrix(
        self, *, query_spatial_dim: Dim, key_value_spatial_dim: Dim, query_offset: int | Tensor | None = None
    ) -> Tensor:
        """(query, key, feature)."""
        offset = int(query_offset.raw_tensor) if isinstance(query_offset, Tensor) else int(query_offset or 0)
        device = self.pos_emb.raw_tensor.device
        keys = torch.arange(key_value_spatial_dim.get_dim_value(), device=device)
        single = query_spatial_dim == single_step_dim
        queries = torch.arange(1 if single else query_spatial_dim.get_dim_value(), device=device) + offset
        highest = 0 if self.causal else self.clipping
        index = (keys - queries[:, None]).clamp(-self.clipping, highest) + self.clipping
        raw = self.pos_emb.raw_tensor[index]
        dims = [key_value_spatial_dim, self.feat_dim]
        if single:
            raw = raw[0]
        else:
            dims = [query_spatial_dim, *dims]
        return Tensor("pos_emb", dims=dims, dtype=dtype_name(raw), feature_dim=self.feat_dim, raw_tensor=raw)
