"""Overlapping chunks of the time axis as sequences of their own.

Legend: B sequences, T frames, C chunks per sequence, L frames of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.axis import BATCH, Axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.network.registry import register_layer


@register_layer("time_chunking")
def time_chunking(
    call: LayerCall, *, chunk_size: int, chunk_step: int, axis: Any = "T", out_dim: Any = None
) -> NamedTensor:
    """(B, T, ...) -> (B*C, L, ...): chunk c begins at frame c * chunk_step."""
    del out_dim
    x = call.x
    time, batch = call.axis(x, axis), x.batch_axis
    if batch is None:
        raise call.error("needs a batch axis")
    rest = [a for a in x.axes if a not in (batch, time)]
    count = _num_chunks(time.size, chunk_size, chunk_step)
    places = torch.arange(count)[:, None] * chunk_step + torch.arange(chunk_size)  # (C, L)
    lengths = time.lengths if time.lengths is not None else torch.full((batch.size,), time.size)
    starts = torch.arange(count) * chunk_step
    chunk_lengths = (lengths[:, None] - starts).clamp(0, chunk_size)  # (B, C)
    raw = x.expanded([batch, time, *rest])[:, places.clamp(max=max(time.size - 1, 0)).to(x.raw.device)]
    new_batch = Axis(f"{call.name}:chunked_batch", batch.size * count, BATCH)
    new_time = Axis(f"{call.name}:chunking", chunk_size, lengths=chunk_lengths.flatten(), over=(new_batch,))
    result = x.like(raw.flatten(0, 1), [new_batch, new_time, *rest], time=new_time)
    return result.like(result.masked([new_time], 0), parts={"_from": NamedTensor(x.raw, x.axes, time=time)})


def _num_chunks(size: int, chunk_size: int, chunk_step: int) -> int:
    return 1 if size <= chunk_size else -(-(size - chunk_size) // chunk_step) + 1


@register_layer("time_unchunking", refs=("chunking_layer",))
def time_unchunking(call: LayerCall, *, chunking_layer: str) -> NamedTensor:
    """Undo `time_chunking`: frames that several chunks have are averaged."""
    chunks = call.layer(chunking_layer)
    options = call.scope.net.spec(chunking_layer).options
    origin = (chunks.parts or {}).get("_from")
    if origin is None:
        raise call.error(f"layer {chunking_layer!r} is no 'time_chunking' layer")
    x = call.x
    flat, time = x.batch_axis, call.time(x)
    old_batch, old_time = origin.batch_axis, origin.time
    assert flat is not None and old_batch is not None and old_time is not None
    rest = [a for a in x.axes if a not in (flat, time)]
    step = options["chunk_step"]
    count = flat.size // old_batch.size
    values = x.masked([time], 0.0)
    values = x.like(values).expanded([flat, time, *rest]).unflatten(0, (old_batch.size, count))  # (B, C, L, ...)
    places = (torch.arange(count)[:, None] * step + torch.arange(time.size)).to(values.device)
    assert time.lengths is not None
    real = (torch.arange(time.size) < time.lengths.view(old_batch.size, count, 1)).to(values.device)
    total = int(places.max()) + 1
    summed = _scattered(values, places, max(total, old_time.size))
    counts = _scattered(real.to(values.dtype), places, max(total, old_time.size)).clamp(min=1.0)
    raw = summed / counts.reshape(*counts.shape, *[1] * len(rest))
    return x.like(raw[:, : old_time.size], [old_batch, old_time, *rest], time=old_time)


def _scattered(values: Tensor, places: Tensor, size: int) -> Tensor:
    """Sum (B, C, L, ...) at the places (C, L): (B, size, ...)."""
    flat = values.flatten(1, 2)
    out = flat.new_zeros(flat.shape[0], size, *flat.shape[2:])
    return out.index_add(1, places.flatten(), flat)
