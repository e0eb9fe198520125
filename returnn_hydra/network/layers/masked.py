"""Layers that are computed only where a mask is true.

Legend: B sequences, T frames, M frames where the mask is true.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from returnn_hydra.network.axis import Axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.named_tensor import NamedTensor, broadcast
from returnn_hydra.network.net import Net
from returnn_hydra.network.registry import register_layer
from returnn_hydra.network.scope import Scope


@register_layer("masked_computation", refs=("mask", "masked_from", "in_spatial_dim"))
def masked_computation(
    call: LayerCall,
    *,
    mask: Any,
    unit: Mapping[str, Any],
    masked_from: Any = None,
    in_spatial_dim: Any = None,
    out_spatial_dim: Any = None,
) -> NamedTensor:
    """Compute `unit` over the frames where the mask is true: (B, T, F) -> (B, M, G).

    In a loop: the unit's state and output stay as they are where the mask is false.
    """
    del in_spatial_dim, out_spatial_dim
    if masked_from is not None:
        source = call.layer(masked_from)
        if not call.stepping:
            return _unit(call, unit, {"data": source})
    else:
        source = call.x
    keep = call.layer(mask)
    loop = call.loop_axis
    time = loop if loop is not None and loop in keep.axes else call.finder.time(keep)
    if time is None:
        return _step(call, unit, source, keep)
    return _unit(call, unit, {"data": masked(call, source, keep, time)}, lambda x: masked(call, x, keep, time))


def masked(call: LayerCall, x: NamedTensor, keep: NamedTensor, time: Axis) -> NamedTensor:
    """The frames where the mask is true, one behind the other."""
    lead = [axis for axis in keep.axes if axis.is_batch_like]
    if keep.batch_axis is None or len(keep.axes) != len(lead) + 1:
        raise call.error(f"the mask has axes {list(keep.axes)}, expected batch and time")
    flags = keep.like(keep.masked([time], 0)).expanded([*lead, time]).bool()
    lengths = flags.sum(-1).cpu()
    longest = int(lengths.max()) if lengths.numel() else 0
    new = time.derived(
        ("masked", keep.raw.data_ptr()), lambda: Axis(f"{call.name}:masked", longest, lengths=lengths, over=lead)
    )
    if time not in x.axes:
        return x
    order = torch.argsort((~flags).to(torch.int8), dim=-1, stable=True)[..., :longest]  # true frames first
    rest = [axis for axis in x.axes if axis not in (*lead, time)]
    values = x.expanded([*lead, time, *rest])
    index = order.reshape(*order.shape, *[1] * len(rest)).expand(*order.shape, *values.shape[len(lead) + 1 :])
    result = x.like(values.gather(len(lead), index), [*lead, new, *rest], time=new)
    return result.like(result.masked([new], 0))


class _UnitScope(Scope):
    """The network around the unit, as the unit sees it: other layers are masked, too.

    Args:
        outer: what becomes of the layers around.
    """

    def __init__(self, call: LayerCall, net: Net, data: Mapping[str, NamedTensor], outer: Outer) -> None:
        around = call.scope
        super().__init__(
            net,
            around.run,
            around.store,
            parent=around,
            data=data,
            param_prefix=around.param_prefix,
            hidden=around.all_hidden,
            trainable=around.trainable,
        )
        self.outer = outer

    def get(self, ref: Any) -> NamedTensor:
        name = ref.partition("/")[0] if isinstance(ref, str) else ""
        if self.parent is not None and name in self.parent.net and name not in self.net:
            return self.outer(self.parent.get(ref))
        return super().get(ref)


Outer = Callable[[NamedTensor], NamedTensor]


def _same(value: NamedTensor) -> NamedTensor:
    return value


def _unit(call: LayerCall, unit: Mapping[str, Any], data: dict[str, NamedTensor], outer: Outer = _same) -> NamedTensor:
    """Compute the layer that `unit` describes, with our name, parameters and network, on other data."""
    net = call.spec.sub({call.name: dict(unit)})
    scope = _UnitScope(call, net, data, outer)
    call.scope.adopt(call.name, scope)
    value = scope.get(call.name)
    inner = scope.children.get(call.name)
    if inner is not None:
        scope.children.update(inner.children)
    return value


def _step(call: LayerCall, unit: Mapping[str, Any], source: NamedTensor, keep: NamedTensor) -> NamedTensor:
    step = call.scope.step
    assert step is not None
    value = _unit(call, unit, {"data": source})
    before = call.state()
    if before is None:
        held = {"output": value.like(torch.zeros_like(value.raw))}
    else:
        held = before
    result = _select(call, keep, value, held["output"])
    for path in [p for p in step.new_states if p.startswith(f"{call.path}/")]:
        old = step.state_of(path)
        if old is not None:
            step.new_states[path] = {k: _select(call, keep, v, old[k]) for k, v in step.new_states[path].items()}
        else:
            zero = {k: v.like(torch.zeros_like(v.raw)) for k, v in step.new_states[path].items()}
            step.new_states[path] = {k: _select(call, keep, v, zero[k]) for k, v in step.new_states[path].items()}
    call.set_state({"output": result})
    return result


def _select(call: LayerCall, keep: NamedTensor, new: NamedTensor, old: NamedTensor) -> NamedTensor:
    raws, template = broadcast([keep, new, old], call.scope.all_hidden)
    raw = torch.where(raws[0].bool(), raws[1], raws[2]).expand([a.size for a in template.axes])
    return template.like(
        raw,
        feature=new.feature if new.feature in template.axes else template.feature,
        sparse_dim=new.sparse_dim,
        vocab=new.vocab,
    )


@register_layer("unmask", refs=("mask",))
def unmask(call: LayerCall, *, mask: str, skip_initial: bool = False) -> NamedTensor:
    """(B, M, F) -> (B, T, F): at every frame the last masked frame so far, zeros before the first.

    `skip_initial`: the first masked frame is the initial state, and shows before the first true frame.
    """
    x, keep = call.x, call.layer(mask)
    loop = call.loop_axis
    time = loop if loop is not None and loop in keep.axes else call.finder.time(keep)
    if time is None:
        return x  # at one frame of a loop, the masked computation holds its output already
    batch, inner = keep.batch_axis, call.finder.time(x)
    if batch is None:
        raise call.error("needs a batch axis")
    if inner is None or inner is time:
        return x
    flags = keep.like(keep.masked([time], 0)).expanded([batch, time]).bool()
    index = flags.long().cumsum(1) - (0 if skip_initial else 1)
    rest = [axis for axis in x.axes if axis not in (batch, inner)]
    values = x.expanded([batch, inner, *rest])
    if inner.size == 0:
        raw = values.new_zeros(batch.size, time.size, *values.shape[2:])
        return x.like(raw, [batch, time, *rest])
    raw = values[torch.arange(batch.size, device=values.device)[:, None], index.clamp(0, inner.size - 1)]
    known = (index >= 0).reshape(*index.shape, *[1] * len(rest))
    raw = torch.where(known, raw, torch.zeros((), dtype=raw.dtype, device=raw.device))
    return x.like(raw, [batch, time, *rest], time=time)


@register_layer("remove")
def remove(call: LayerCall, *, symbol: int, axis: Any = "T") -> NamedTensor:
    """Class indices without one of them: (B, T) -> (B, M)."""
    x = call.x
    if x.sparse_dim is None:
        raise call.error("needs class indices")
    index = symbol + x.sparse_dim if symbol < 0 else symbol
    return masked(call, x, NamedTensor(x.raw != index, x.axes), call.axis(x, axis))
