"""Multi-head self attention.

Legend: N all batch-like axes, T queries, S keys, H heads, K key features per head, V value features per head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.axis import Axis, static_axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.layers.linear import affine
from returnn_hydra.network.named_tensor import NamedTensor, to_beam
from returnn_hydra.network.registry import register_layer


@register_layer("self_attention", refs=("key_shift", "initial_state"), sequential=True)
def self_attention(
    call: LayerCall,
    *,
    num_heads: int,
    total_key_dim: int,
    key_shift: str | None = None,
    forward_weights_init: Any = "glorot_uniform",
    attention_dropout: float = 0.0,
    attention_left_only: bool = False,
    initial_state: Any = None,
    restrict_state_to_last_seq: bool = False,
    state_var_lengths: Any = None,
) -> NamedTensor:
    """softmax(q k^T / sqrt(K)) v with one matrix `QKV`, whose columns go head by head: q, k, v.

    In a loop, the frame looks at itself and at all frames before it. `key_shift` (T, S, K) is added to the keys
    (relative positions).
    """
    if initial_state is not None or restrict_state_to_last_seq or state_var_lengths is not None:
        raise call.error(
            "options 'initial_state', 'restrict_state_to_last_seq' and 'state_var_lengths' are not supported"
        )
    size = call.need_n_out()
    if total_key_dim % num_heads or size % num_heads:
        raise call.error(f"num_heads = {num_heads} does not divide total_key_dim = {total_key_dim} and n_out = {size}")
    x = call.x
    columns = 2 * total_key_dim + size
    matrix = call.param("QKV", (x.dim or 0, columns), forward_weights_init)
    joined = affine(call, x, columns, matrix, None)
    per_head = [total_key_dim // num_heads, total_key_dim // num_heads, size // num_heads]
    loop = call.loop_axis
    time = loop if loop is not None and loop in x.axes else call.finder.time(x)
    if time is None:
        return _step(call, joined, num_heads, per_head, key_shift, attention_dropout, size)
    causal = attention_left_only or time is loop
    rows, other = joined.rows(time, call.feature(joined))  # (N, T, columns)
    q, k, v = rows.unflatten(-1, (num_heads, -1)).transpose(1, 2).split(per_head, -1)  # (N, H, T, .)
    keep = _keep(time, other, causal, rows.device)
    shift = _shift(call, key_shift, time.size, time.size)
    attended = attend(q, k, v, keep, shift, attention_dropout if call.train else 0.0)
    feature = call.new_feature(size)
    raw = attended.transpose(1, 2).reshape(*[a.size for a in other], time.size, size)
    result = x.dense(raw, [*other, time, feature], feature=feature)
    order = [axis for axis in x.axes if axis is not x.feature]
    return result.ordered([*order, feature])


def _keep(time: Axis, other: tuple[Axis, ...], causal: bool, device: torch.device) -> Tensor:
    """True where a query may look: (N or 1, 1, T or 1, S)."""
    if causal:
        return torch.ones(time.size, time.size, dtype=torch.bool, device=device).tril()[None, None]
    if time.lengths is None:
        return torch.ones(1, 1, 1, time.size, dtype=torch.bool, device=device)
    mask = NamedTensor(time.mask(device), (*time.over, time)).to_axes([*other, time])
    return mask.expand(*[a.size for a in other], time.size).reshape(-1, 1, 1, time.size)


def _shift(call: LayerCall, key_shift: str | None, queries: int, keys: int) -> Tensor | None:
    if key_shift is None:
        return None
    raw = call.layer(key_shift).raw
    if raw.dim() != 3 or raw.shape[:2] != (queries, keys):
        raise call.error(f"key_shift has shape {tuple(raw.shape)}, expected ({queries}, {keys}, key features per head)")
    return raw


def attend(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, shift: Tensor | None, dropout: float) -> Tensor:
    """(N, H, T, K), (N, H, S, K), (N, H, S, V) -> (N, H, T, V); rows that may look nowhere give 0."""
    if shift is None:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, keep, dropout)
    q = q * q.shape[-1] ** -0.5
    energy = torch.matmul(q, k.mT) + torch.einsum("nhtk,tsk->nhts", q, shift)
    energy = energy.masked_fill(~keep, -torch.inf)
    weights = torch.softmax(energy, -1)
    if dropout:
        weights = torch.nn.functional.dropout(weights, dropout)
    return torch.matmul(weights, v)


def _step(
    call: LayerCall,
    joined: NamedTensor,
    num_heads: int,
    per_head: list[int],
    key_shift: str | None,
    dropout: float,
    size: int,
) -> NamedTensor:
    """One frame of a loop: keys and values of the frames before it are in the state."""
    if not call.stepping:
        raise call.error("needs a time axis")
    rows, other = joined.rows(call.feature(joined))
    q, k, v = rows.unflatten(-1, (num_heads, -1)).split(per_head, -1)  # (N, H, .)
    before = call.state()
    keys, values = k.unsqueeze(2), v.unsqueeze(2)  # (N, H, 1, .)
    if before is not None:
        keys = torch.cat([_cached(before["k"], other), keys], 2)
        values = torch.cat([_cached(before["v"], other), values], 2)
    count = keys.shape[2]
    past = static_axis(f"{call.name}:past", count)
    head = static_axis(f"{call.name}:heads", num_heads)
    sizes = [a.size for a in other]

    def named(raw: Tensor) -> NamedTensor:
        last = static_axis("head-dim", raw.shape[-1])
        return NamedTensor(raw.reshape(*sizes, num_heads, count, raw.shape[-1]), (*other, head, past, last))

    call.set_state({"k": named(keys), "v": named(values)})
    shift = _shift(call, key_shift, 1, count)
    keep = torch.ones(1, 1, 1, count, dtype=torch.bool, device=rows.device)
    attended = attend(q.unsqueeze(2), keys, values, keep, shift, dropout if call.train else 0.0)
    feature = call.new_feature(size)
    return NamedTensor(attended.reshape(*sizes, size), (*other, feature), feature=feature)


def _cached(state: NamedTensor, other: tuple[Axis, ...]) -> Tensor:
    """(N, H, S, .) for the hypotheses of this step."""
    beam = next((axis for axis in other if axis.kind == "beam"), None)
    if beam is not None:
        state = to_beam(state, beam)
    inner = [axis for axis in state.axes if axis not in other]
    raw = state.to_axes([*other, *inner]).expand([a.size for a in (*other, *inner)])
    return raw.reshape(-1, *[axis.size for axis in inner])
