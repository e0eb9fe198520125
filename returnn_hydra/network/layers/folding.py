"""Flat axes into several, and windows back into one axis.

Legend: B batch, T frames, W window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from returnn_hydra.network.axis import Axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.errors import nearest
from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.network.registry import register_layer


@register_layer("unflatten_nd", refs=("sizes", "declare_same_sizes_as"))
def unflatten_nd(
    call: LayerCall,
    *,
    sizes: str,
    num_axes: int,
    in_dim: Any = "T",
    out_dims: Any = None,
    declare_same_sizes_as: Mapping[int, str] | None = None,
) -> NamedTensor:
    """(B, T, ...) of flattened images to (B, T1, ..., TN, ...); `sizes` (B, N) says how large each one is."""
    del out_dims
    x, wanted = call.x, call.layer(sizes)
    batch, old = x.batch_axis, call.axis(x, in_dim)
    if batch is None or wanted.batch_axis is None or len(wanted.axes) != 2:
        raise call.error(f"'sizes' must have the axes (batch, {num_axes}), not {list(wanted.axes)}")
    counts = wanted.batch_major().raw.detach().cpu().long()
    if counts.shape[1] != num_axes:
        raise call.error(f"num_axes = {num_axes}, but 'sizes' has {counts.shape[1]} per sequence")
    index = torch.zeros(len(counts), *[1] * num_axes, dtype=torch.long)
    inside = torch.ones_like(index, dtype=torch.bool)
    axes = []
    for i in range(num_axes):
        shape = [-1, *[1] * num_axes]
        size, stride = counts[:, i].reshape(shape), counts[:, i + 1 :].prod(1).reshape(shape)
        longest = int(counts[:, i].max())
        place = torch.arange(longest).reshape([-1 if k == i + 1 else 1 for k in range(num_axes + 1)])
        index, inside = index + place * stride, inside & (place < size)
        axes.append(_axis(call, i, longest, counts[:, i], batch, declare_same_sizes_as))
    index = torch.where(inside, index, 0)
    if call.run.building:  # made-up sizes
        index = index.clamp(max=old.size - 1)
    elif index.numel() and int(index.max()) >= old.size:
        raise call.error(f"sizes {counts.tolist()} need {int(index.max()) + 1} frames, but there are {old}")
    rest = [axis for axis in x.axes if axis not in (batch, old)]
    rows = torch.arange(len(counts)).reshape(-1, *[1] * num_axes)
    raw = x.expanded([batch, old, *rest])[rows.to(x.raw.device), index.to(x.raw.device)]
    return x.like(raw, [batch, *axes, *rest], time=axes[0])


def _axis(
    call: LayerCall, i: int, size: int, lengths: torch.Tensor, batch: Axis, same: Mapping[int, str] | None
) -> Axis:
    new = Axis(f"{call.name}:unflatten{i}", size, lengths=lengths, over=(batch,))
    if not same or i not in same:
        return new
    other = call.time(call.layer(same[i]))
    if not other.same_sizes(new) and not call.run.building:
        raise call.error(f"declare_same_sizes_as: {other} has not the sizes {lengths.tolist()}")
    return other if other.same_sizes(new) else new


@register_layer("fold")
def fold(
    call: LayerCall,
    *,
    mode: str,
    in_spatial_dim: Any,
    window_dim: Any,
    out_spatial_dim: Any = None,
    padding: str = "same",
    window_left: int | None = None,
    window_right: int | None = None,
    stride: int = 1,
) -> NamedTensor:
    """The inverse of `window`: (B, T, W, ...) -> (B, T', ...); frames that several windows have: sum or mean."""
    if mode not in ("sum", "mean"):
        raise call.error(f"mode {mode!r} is not supported{nearest(mode, ('sum', 'mean'))}")
    if padding not in ("same", "valid"):
        raise call.error(f"padding {padding!r} is not supported{nearest(padding, ('same', 'valid'))}")
    if stride != 1 and (padding == "valid" or out_spatial_dim is not None):
        raise call.error(
            "'stride' with padding 'valid' or 'out_spatial_dim' is not supported; nearest: class 'time_unchunking'"
        )
    x = call.x
    old, width = call.axis(x, in_spatial_dim), call.axis(x, window_dim)
    rest = [axis for axis in x.axes if axis not in (old, width)]
    values = x.like(x.masked([old], 0)).expanded([*rest, old, width])
    real = NamedTensor(old.mask(x.raw.device), (*old.over, old)).to_axes([*rest, old]) if old.is_dynamic else None
    places = (torch.arange(old.size)[:, None] * stride + torch.arange(width.size)).flatten().to(x.raw.device)
    whole = (old.size - 1) * stride + width.size
    raw = values.new_zeros(*values.shape[:-2], whole).index_add(-1, places, values.flatten(-2))
    if mode == "mean":
        ones = torch.ones(values.shape[-2:], device=x.raw.device) if real is None else real[..., None].to(raw.dtype)
        ones = ones.expand(*ones.shape[:-1], width.size).flatten(-2)
        raw = raw / ones.new_zeros(*ones.shape[:-1], whole).index_add(-1, places, ones).clamp(min=1.0)
    if padding == "same":
        left = (width.size - 1) // 2 if window_right is None else width.size - 1 - window_right
        left = left if window_left is None else window_left
        size = old.size * stride
        raw = torch.nn.functional.pad(raw[..., left:], (0, max(0, size + left - whole)))[..., :size]
        new = old if stride == 1 else old.with_lengths(("mul", stride), f"{call.name}:fold", size, lambda n: n * stride)
    else:
        new = old.with_lengths(("add", width.size - 1), f"{call.name}:fold", whole, lambda n: n + width.size - 1)
    time = new if call.finder.time(x) is old else None
    return x.like(raw, [*rest, new], time=time).ordered([new if a is old else a for a in x.axes if a is not width])
