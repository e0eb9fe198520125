"""Pooling over spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.errors import nearest
from returnn_hydra.network.layers.conv import check_padding, out_axis, per_axis, same_padding, spatial_axes
from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.network.registry import register_layer


@register_layer("pool")
def pool(
    call: LayerCall,
    *,
    mode: str,
    pool_size: Sequence[int],
    padding: str = "valid",
    dilation_rate: Any = 1,
    strides: Any = None,
    in_spatial_dims: Any = None,
    out_spatial_dims: Any = None,
    use_channel_first: Any = None,
    use_time_mask: bool = False,
) -> NamedTensor:
    """Maximum or mean over windows; `same` padding never counts. Default stride: the window's size."""
    del out_spatial_dims, use_channel_first
    if mode not in ("max", "avg"):
        raise call.error(f"mode {mode!r} is not supported{nearest(mode, ('max', 'avg'))}")
    x = call.x
    count = len(pool_size)
    padding = check_padding(call, padding)
    spatial = spatial_axes(call, x, in_spatial_dims, count)
    stride = per_axis(call, strides if strides is not None else list(pool_size), count, "strides")
    dilation = per_axis(call, dilation_rate, count, "dilation_rate")
    if mode == "avg" and any(d != 1 for d in dilation):
        raise call.error("mode 'avg' with dilation_rate is not supported; nearest: mode 'max'")
    new = [
        out_axis(call, a, p, s, d, padding, f"{call.name}:pool:s{i}")
        for i, (a, p, s, d) in enumerate(zip(spatial, pool_size, stride, dilation, strict=True))
    ]
    sides = [(0, 0)] * count
    if padding == "same":
        sides = [same_padding(a.size, p, s, d) for a, p, s, d in zip(spatial, pool_size, stride, dilation, strict=True)]
    flat = [size for pair in reversed(sides) for size in pair]
    if use_time_mask:
        x = x.dense(x.masked(spatial, -torch.inf if mode == "max" else 0.0))
    rows, other = x.rows(*spatial)
    rows = rows.unsqueeze(1)  # (N, 1, *S)
    if mode == "max":
        functions = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
        lowest = -torch.inf if rows.is_floating_point() else torch.iinfo(rows.dtype).min
        raw = functions[count](F.pad(rows, flat, value=lowest), list(pool_size), stride, 0, dilation)
    else:
        averages = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
        real = F.pad(torch.ones_like(rows), flat)
        average = averages[count]
        raw = average(F.pad(rows, flat), list(pool_size), stride) / average(real, list(pool_size), stride)
    raw = raw.squeeze(1).reshape(*[a.size for a in (*other, *new)])
    replaced = dict(zip(spatial, new, strict=True))
    time = call.finder.time(x)
    result = x.dense(raw, [*other, *new], time=replaced.get(time, time) if time is not None else None)
    return result.ordered([replaced.get(a, a) for a in x.axes])
