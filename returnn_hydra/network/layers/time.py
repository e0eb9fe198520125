"""Layers that know the time axis: lengths, masks, positions, and frames before or behind.

Legend: B batch, T time, F features.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.axis import Axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.errors import nearest
from returnn_hydra.network.layers.elementwise import TORCH_TYPES
from returnn_hydra.network.named_tensor import NamedTensor, broadcast
from returnn_hydra.network.registry import register_layer


@register_layer("length")
def length(
    call: LayerCall,
    *,
    axis: Any = "T",
    add_time_axis: bool = False,
    dtype: str = "int32",
    sparse: bool = False,
    dim: Any = None,
) -> NamedTensor:
    """Number of real frames of every sequence: (B,)."""
    del sparse, dim
    x = call.x
    over = call.axis(x, axis)
    if add_time_axis:
        raise call.error("option 'add_time_axis' is not supported; nearest: class 'expand_dims' behind it")
    kind = TORCH_TYPES[dtype]
    if over.lengths is None:
        return NamedTensor(torch.tensor(over.size, dtype=kind, device=call.device), ())
    return NamedTensor(over.lengths.to(call.device, kind), over.over)


@register_layer("range_in_axis")
def range_in_axis(
    call: LayerCall,
    *,
    axis: Any,
    dtype: str = "int32",
    unbroadcast: bool = False,
    keepdims: bool = False,
    sparse: bool = False,
) -> NamedTensor:
    """0, 1, 2, ... along an axis of the input."""
    del keepdims
    x = call.x
    over = call.axis(x, axis)
    index = torch.arange(over.size, device=call.device).to(TORCH_TYPES[dtype])
    result = NamedTensor(index, (over,), sparse_dim=over.size if sparse and not over.is_dynamic else None)
    return x.dense(result.expanded(x.axes), feature=x.feature) if unbroadcast else result


@register_layer("range_from_length")
def range_from_length(
    call: LayerCall, *, axis: Any = "T", dtype: str = "int32", sparse: bool = False, out_spatial_dim: Any = None
) -> NamedTensor:
    """0, 1, 2, ... as far as the input says for every sequence."""
    del axis, sparse, out_spatial_dim
    x = call.x
    lengths = x.raw.detach().cpu().long()
    size = int(lengths.max()) if lengths.numel() else 0
    new = Axis(f"{call.name}_input_len", size, lengths=lengths, over=x.axes)
    return NamedTensor(torch.arange(size, device=call.device).to(TORCH_TYPES[dtype]), (new,))


@register_layer("seq_len_mask", refs=("start", "window_start", "window_size", "seq_len_source"))
def seq_len_mask(
    call: LayerCall,
    *,
    mask_value: float,
    axis: Any = "T",
    seq_len_source: Any = None,
    start: Any = None,
    window_start: Any = None,
    window_size: Any = None,
) -> NamedTensor:
    """The input, with a value at the padding."""
    if any(part is not None for part in (start, window_start, window_size)):
        raise call.error("options 'start', 'window_start', 'window_size' are not supported; nearest: class 'switch'")
    x = call.x
    over = call.axis(x, axis)
    if seq_len_source is None:
        if not over.is_dynamic:
            return x
        return x.dense(x.masked([over], mask_value))
    lengths = call.layer(seq_len_source)
    position = NamedTensor(torch.arange(over.size, device=call.device), (over,))
    raws, template = broadcast([x, lengths, position], call.scope.all_hidden)
    raw = torch.where(raws[2] < raws[1], raws[0], torch.full((), mask_value, dtype=raws[0].dtype, device=call.device))
    return template.dense(raw.expand([a.size for a in template.axes]), feature=x.feature)


def _filler(call: LayerCall, value: Any, x: NamedTensor, over: Axis) -> Tensor:
    """A number or another layer's values, in the layout (over, *rest) of x."""
    rest = [a for a in x.axes if a is not over]
    sizes = [a.size for a in rest]
    if isinstance(value, str):
        given = call.layer(value)
        raws, template = broadcast([x.select(over, 0) if over.size else x.like(x.raw.sum(x.index(over)), rest), given])
        order = [template.axes.index(a) for a in rest]
        if len(order) != len(template.axes):
            raise call.error(f"layer {value!r} has axes that the input lacks: {list(given.axes)}")
        return raws[1].permute(order).expand(sizes).to(x.raw.dtype)
    return torch.full(sizes, value, dtype=x.raw.dtype, device=x.raw.device)


@register_layer("prefix_in_time", refs=("prefix", "size_base"))
def prefix_in_time(
    call: LayerCall,
    *,
    axis: Any = "T",
    out_dim: Any = None,
    prefix: Any = 0.0,
    repeat: Any = 1,
    size_base: Any = None,
) -> NamedTensor:
    """`repeat` frames in front of every sequence."""
    del out_dim
    if not isinstance(repeat, int):
        raise call.error(f"repeat = {repeat!r} is not supported; nearest: a number")
    x = call.x
    old = call.axis(x, axis)
    rest = [a for a in x.axes if a is not old]
    filler = _filler(call, prefix, x, old)[None].expand(repeat, *[a.size for a in rest])
    raw = torch.cat([filler, x.expanded([old, *rest])], 0)
    new = old.with_lengths(("add", repeat), f"{call.name}:prefix-in-time", raw.shape[0], lambda n: n + repeat)
    if size_base is not None:
        new = call.time(call.layer(size_base))
    return x.like(raw, [new, *rest], time=new).ordered([new if a is old else a for a in x.axes])


@register_layer("postfix_in_time", refs=("postfix",))
def postfix_in_time(
    call: LayerCall, *, axis: Any = "T", out_dim: Any = None, postfix: Any = 0.0, repeat: int = 1
) -> NamedTensor:
    """`repeat` frames behind the last real frame of every sequence."""
    del out_dim
    x = call.x
    old = call.axis(x, axis)
    rest = [a for a in x.axes if a is not old]
    filler = _filler(call, postfix, x, old)[None].expand(repeat, *[a.size for a in rest])
    raw = torch.cat([x.expanded([old, *rest]), filler], 0)
    new = old.with_lengths(("add", repeat), f"{call.name}:postfix-in-time", raw.shape[0], lambda n: n + repeat)
    if old.lengths is not None:
        real = NamedTensor(old.lengths.to(raw.device), old.over).to_axes(rest) if rest else old.lengths
        steps = torch.arange(new.size, device=raw.device).reshape(-1, *[1] * len(rest))
        raw = torch.where(steps < real, raw, filler[:1])
    return x.like(raw, [new, *rest], time=new).ordered([new if a is old else a for a in x.axes])


@register_layer("repeat", refs=("repetitions",))
def repeat(call: LayerCall, *, repetitions: Any, axis: Any = "T", out_dim: Any = None) -> NamedTensor:
    """Every frame several times: a number, or as often as a layer says."""
    del out_dim
    x = call.x
    old = call.axis(x, axis)
    if isinstance(repetitions, int):
        if old is x.feature:
            new = call.new_feature(old.size * repetitions, "repeat")
        else:
            key = ("times", repetitions)
            new = old.with_lengths(key, f"{call.name}:repeat", old.size * repetitions, lambda n: n * repetitions)
        raw = x.raw.repeat_interleave(repetitions, x.index(old))
        return x.like(
            raw,
            [new if a is old else a for a in x.axes],
            feature=new if x.feature is old else x.feature,
            time=new if x.time is old else x.time,
        )
    return _repeated_by(call, x, call.layer(repetitions), old)


def _repeated_by(call: LayerCall, x: NamedTensor, counts: NamedTensor, old: Axis) -> NamedTensor:
    batch = x.batch_axis
    if batch is None:
        raise call.error("needs a batch axis")
    rest = [a for a in x.axes if a not in (batch, old)]
    times = counts.like(counts.masked([old], 0)).expanded([batch, old]).long().cpu()
    lengths = times.sum(1)
    size = int(lengths.max())
    ends = times.cumsum(1)
    index = torch.searchsorted(ends, torch.arange(size).expand(batch.size, -1).contiguous(), right=True)
    index = index.clamp(max=max(old.size - 1, 0)).to(x.raw.device)
    values = x.expanded([batch, old, *rest])
    raw = values[torch.arange(batch.size, device=index.device)[:, None], index]
    new = Axis(f"{call.name}:repeat", size, lengths=lengths, over=(batch,))
    raw = raw * NamedTensor(new.mask(raw.device), (batch, new)).to_axes([batch, new, *rest])
    return x.like(raw, [batch, new, *rest], time=new)


@register_layer("resize")
def resize(
    call: LayerCall,
    *,
    factor: int,
    axis: Any,
    out_dim: Any = None,
    kind: str = "nn",
    fill_value: Any = None,
    fill_dropout: float = 0.0,
) -> NamedTensor:
    """Upsample an axis: repeat every entry (`nn`), or put a value between (`fill`)."""
    del out_dim
    if fill_dropout:
        raise call.error("option 'fill_dropout' is not supported; nearest: 'fill_value'")
    x = call.x
    if kind == "nn":
        return repeat(call, repetitions=factor, axis=axis)
    if kind != "fill":
        raise call.error(f"kind {kind!r} is not supported{nearest(kind, ('nn', 'fill'))}")
    old = call.axis(x, axis)
    rest = [a for a in x.axes if a is not old]
    raw = x.expanded([old, *rest]).unsqueeze(1)
    filler = torch.full_like(raw, fill_value or 0).expand(-1, factor - 1, *[-1] * len(rest))
    raw = torch.cat([raw, filler], 1).flatten(0, 1)
    new = old.with_lengths(("times", factor), f"{call.name}:resize", old.size * factor, lambda n: n * factor)
    return x.like(raw, [new, *rest], time=new).ordered([new if a is old else a for a in x.axes])


def sinusoids(position: Tensor, num_channels: int) -> Tensor:
    """First half sines, second half cosines, of wave lengths from 2 pi to 2 pi 1e4 (as in tensor2tensor).

    Args:
        position: (...).
        num_channels: F; an odd one gets a 0 at the end.

    Returns:
        (..., F).
    """
    half = num_channels // 2
    step = math.log(1e4) / max(half - 1, 1)
    rates = torch.exp(torch.arange(half, device=position.device, dtype=torch.float32) * -step)
    angle = position.to(torch.float32)[..., None] * rates
    signal = torch.cat([angle.sin(), angle.cos()], -1)
    return torch.nn.functional.pad(signal, (0, num_channels - 2 * half))


@register_layer("positional_encoding", refs=("offset",), sequential=True)
def positional_encoding(
    call: LayerCall, *, axis: Any = None, add_to_input: bool = False, constant: int = -1, offset: Any = None
) -> NamedTensor:
    """Sinusoids of the frame's number; in a loop, of the step's."""
    x = call.x
    size = x.dim if add_to_input else call.n_out or x.dim
    if size is None:
        raise call.error("option 'n_out' is missing")
    position = _positions(call, x, axis, constant)
    if isinstance(offset, str):
        raws, position = broadcast([position, call.layer(offset)], call.scope.all_hidden)
        position = position.dense((raws[0] + raws[1]).expand([a.size for a in position.axes]))
    feature = call.feature(x) if add_to_input else call.new_feature(size)
    signal = NamedTensor(sinusoids(position.raw, size), (*position.axes, feature), feature=feature)
    if add_to_input:
        raws, template = broadcast([x, signal], call.scope.all_hidden)
        return template.dense(raws[0] + raws[1], feature=feature)
    axes = [a for a in x.axes if a is not x.feature]
    raw = signal.to_axes([*axes, feature]).expand([a.size for a in (*axes, feature)])
    return x.dense(raw, [*axes, feature], feature=feature)


def _positions(call: LayerCall, x: NamedTensor, axis: Any, constant: int) -> NamedTensor:
    if constant > -1:
        return NamedTensor(torch.tensor(constant, device=call.device), ())
    loop = call.loop_axis
    if loop is not None and loop in x.axes:
        return NamedTensor(torch.arange(loop.size, device=call.device), (loop,))
    if call.finder.time(x) is None and (call.stepping or loop is not None):
        return call.scope.step_index()
    over = call.axis(x, axis) if isinstance(axis, str) else call.time(x)
    return NamedTensor(torch.arange(over.size, device=call.device), (over,))


@register_layer("relative_positional_encoding")
def relative_positional_encoding(
    call: LayerCall,
    *,
    forward_weights_init: Any = "glorot_uniform",
    clipping: int = 16,
    fixed: bool = False,
    query_spatial_dim: Any = None,
    key_value_spatial_dim: Any = None,
    query_offset: Any = None,
) -> NamedTensor:
    """A vector for every distance key - query, clipped: (T, T, F); at a step of a loop (1, T, F)."""
    if any(option is not None for option in (query_spatial_dim, key_value_spatial_dim, query_offset)):
        raise call.error("options 'query_spatial_dim', 'key_value_spatial_dim', 'query_offset' are not supported")
    size = call.need_n_out()
    count = 2 * clipping + 1
    if fixed:
        table = sinusoids(torch.arange(count, device=call.device), size)
    else:
        table = call.param("encoding_matrix", (count, size), forward_weights_init)
    x = call.x
    loop = call.loop_axis
    over = loop if loop is not None and loop in x.axes else call.finder.time(x)
    if over is None:  # one step: this frame looks at all up to it
        step = int(call.scope.step_index().raw)
        queries, keys = torch.tensor([step]), torch.arange(step + 1)
        key_axis = Axis(f"{call.name}_rel_pos_enc_time", step + 1)
        query_axis = Axis(f"{call.name}_rel_pos_enc_dummy", 1)
    else:
        queries = keys = torch.arange(over.size)
        query_axis, key_axis = over, over.derived("keys", over.copy)
    distance = (keys[None, :] - queries[:, None]).clamp(-clipping, clipping) + clipping
    feature = call.new_feature(size, "rel_pos_enc_feat")
    return NamedTensor(table[distance.to(table.device)], (query_axis, key_axis, feature), feature=feature)


@register_layer("rec_unstack", framewise=True)
def rec_unstack(call: LayerCall, *, axis: Any = None, declare_rec_time: bool = False) -> NamedTensor:
    """A tensor from outside of a loop, at the frame where the loop is.

    The loop must know its length from its input or target, and `axis` must have the same lengths.
    """
    del declare_rec_time
    x = call.x
    step = call.scope.step
    loop = step.rec.loop if step is not None else call.loop_axis
    if loop is None:
        raise call.error("expects to be inside of a rec layer that has an input; nearest: 'from' of the rec layer")
    if loop not in x.axes:
        old = call.time(x) if axis is None else call.axis(x, axis)
        if not old.same_sizes(loop):
            raise call.error(f"axis {old} has not the lengths of the loop, {loop}")
        x = x.relabelled(old, loop)
    return x if step is None else x.select(loop, step.t)
