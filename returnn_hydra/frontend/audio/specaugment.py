"""SpecAugment (Park et al. 2019): random stripes of time and of features set to 0."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from returnn_hydra.frontend.ambient import behavior_at_least
from returnn_hydra.frontend.create import convert_to_tensor
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.elementwise import where
from returnn_hydra.frontend.run_ctx import get_run_ctx
from returnn_hydra.frontend.tensor import Tensor


def specaugment(
    x: Tensor,
    *,
    spatial_dim: Dim,
    feature_dim: Dim | None = None,
    global_train_step_dependent: bool = True,
    only_on_train: bool = True,
    max_consecutive_spatial_dims: int | Tensor = 20,
    max_consecutive_feature_dims: int | None = None,
    num_spatial_mask_factor: int = 100,
    num_masks_per_seq: bool | None = None,
    steps: tuple[int, int, int] = (0, 1000, 2000),
) -> Tensor:
    """Mask stripes, more of them as training goes on (at the three `steps`).

    Args:
        max_consecutive_spatial_dims, max_consecutive_feature_dims: widest stripe; features: default a fifth of them.
        num_spatial_mask_factor: one more time stripe per so many frames.
        num_masks_per_seq: count by every sequence's own length (RETURNN's default from behaviour version 28 on)
            instead of the
            longest.
    """
    ctx = get_run_ctx()
    if only_on_train and not ctx.is_train_flag_enabled(func=specaugment):
        return x
    feature_dim = feature_dim or x.feature_dim
    if feature_dim is None or feature_dim.dimension is None:
        raise ValueError(f"specaugment: {x} needs a feature dim of static size")
    if max_consecutive_feature_dims is None:
        max_consecutive_feature_dims = feature_dim.dimension // 5
    reached = [1, 1, 1]
    if global_train_step_dependent:
        step = int(ctx.get_step_tensor().raw_tensor)
        reached = [int(step >= limit) for limit in steps]
    first, second, third = reached
    per_seq = num_masks_per_seq
    if per_seq is None:
        per_seq = behavior_at_least(28, "rf_specaugment_num_masks_per_seq")
    lengths: Any = spatial_dim.get_dim_value()
    if per_seq and spatial_dim.need_masking():
        lengths = spatial_dim.get_size_tensor(device=x.device)
        most = (lengths.raw_tensor // num_spatial_mask_factor).clamp(min=2) * (first + second + third * 2)
        fewest = torch.full_like(most, second + third)
        limits = [lengths._new(lengths.dims, torch.minimum(v, lengths.raw_tensor)) for v in (fewest, most)]
    else:
        most = max(lengths // num_spatial_mask_factor, 2) * (first + second + third * 2)
        limits = [min(second + third, lengths), min(most, lengths)]
    masked = random_mask(
        x, mask_axis=spatial_dim, broadcast_axis=feature_dim, min_num=limits[0], max_num=limits[1],
        max_dims=max_consecutive_spatial_dims,
    )  # fmt: skip
    return random_mask(
        masked, mask_axis=feature_dim, broadcast_axis=spatial_dim, min_num=second + third,
        max_num=first * 2 + second + third * 2, max_dims=max_consecutive_feature_dims,
    )  # fmt: skip


def random_mask(
    x: Tensor,
    *,
    mask_axis: Dim,
    broadcast_axis: Dim | Collection[Dim],
    min_num: int | Tensor,
    max_num: int | Tensor,
    max_dims: int | Tensor,
    mask_value: Any = 0.0,
    max_num_bound: int | None = None,
) -> Tensor:
    """Set min_num to max_num stripes of `mask_axis` to mask_value, the same ones over all of `broadcast_axis`.

    The positions are drawn without replacement, the widths evenly from 1 to max_dims; stripes may overlap. The numbers
    are drawn in RETURNN's order: with the same seed, the same stripes.
    """
    shared = [broadcast_axis] if isinstance(broadcast_axis, Dim) else list(broadcast_axis)
    batch = [d for d in x.dims if d != mask_axis and d not in shared]
    shape = [d.get_dim_value() for d in batch]
    device = x.raw_tensor.device
    low, high = (_limit(v, batch, device) for v in (min_num, max_num))
    if isinstance(low, int) and isinstance(high, int):
        count = torch.randint(low, high + 1, shape, device=device)
    else:
        count = (torch.rand(shape, device=device) * (high + 1 - low)).floor().long() + low
    most = max_num_bound if max_num_bound is not None else int(count.max())
    size = mask_axis.get_dim_value()
    most = min(most, size)
    positions = _distinct_positions(mask_axis, batch, shape, most, device)
    widest = int(max_dims.raw_tensor) if isinstance(max_dims, Tensor) else int(max_dims)
    widths = torch.randint(1, max(widest, 1) + 1, [*shape, most], device=device)
    used = torch.arange(most, device=device) < count[..., None]
    frames = torch.arange(size, device=device)
    last = positions + widths
    if mask_axis.need_masking():  # stripes end with the sequence: what pads it stays as it is
        lengths = mask_axis.get_size_tensor(device=str(device))
        if lengths.dims_set <= set(batch):
            last = torch.minimum(last, lengths.copy_compatible_to_dims_raw(batch)[..., None])
    begin, end = positions[..., None], last[..., None]
    stripes = ((frames >= begin) & (frames < end) & used[..., None]).any(dim=-2)
    hidden = Tensor("stripes", dims=[*batch, mask_axis], dtype="bool", raw_tensor=stripes)
    return where(hidden, mask_value, x).copy_transpose(x.dims)


def _limit(value: int | Tensor, batch: Sequence[Dim], device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.copy_compatible_to_dims_raw(batch).to(device)
    return int(value)


def _distinct_positions(
    axis: Dim, batch: list[Dim], shape: list[int], count: int, device: torch.device
) -> torch.Tensor:
    """(batch..., count) different positions, inside of every sequence as long as there are enough."""
    order = torch.rand([*shape, axis.get_dim_value()], device=device)
    if axis.need_masking():
        mask = axis.get_mask(device=str(device))
        if mask.dims_set - {axis} <= set(batch):
            order = order.masked_fill(~mask.copy_compatible_to_dims_raw([*batch, axis]), -1.0)
    return torch.topk(order, count, dim=-1).indices


def mask(x: Tensor, *, mask_axis: Dim, pos: Tensor, max_amount: int | Tensor, mask_value: Any = 0.0) -> Tensor:
    """Set one stripe from `pos` on, of random width up to max_amount, to mask_value."""
    widest = int(max_amount.raw_tensor) if isinstance(max_amount, Tensor) else int(max_amount)
    pos = convert_to_tensor(pos)
    start = pos.raw_tensor
    width = torch.randint(1, widest + 1, start.shape, device=start.device)
    frames = torch.arange(mask_axis.get_dim_value(), device=start.device)
    hidden = (frames >= start[..., None]) & (frames < (start + width)[..., None])
    stripes = Tensor("stripes", dims=[*pos.dims, mask_axis], dtype="bool", raw_tensor=hidden)
    return where(stripes, mask_value, x).copy_transpose(x.dims)
