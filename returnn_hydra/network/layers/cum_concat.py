"""All frames of a loop so far, for attention written as separate layers.

Legend: B sequences, T frames of the loop, H frames so far.
"""

from __future__ import annotations

from typing import Any

import torch

from returnn_hydra.network.axis import Axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.named_tensor import NamedTensor, latest_beam, to_beam
from returnn_hydra.network.registry import register_layer


@register_layer("cum_concat", sequential=True)
def cum_concat(call: LayerCall, *, out_spatial_dim: Any = None, new_dim: Any = None, axis: Any = None) -> NamedTensor:
    """The frames up to this one along a new axis: at frame t (B, ...) -> (B, t + 1, ...).

    Over all frames at once the input stays as it is: its frames are on the new axis, of which frame t of the loop sees
    the first t + 1.
    """
    del axis
    given = out_spatial_dim if out_spatial_dim is not None else new_dim
    name = given if isinstance(given, str) else getattr(given, "description", None) or getattr(given, "name", None)
    name = str(name or "rec-history")
    x, loop = call.x, call.loop_axis
    if call.stepping:
        return _grown(call, x, name)
    if loop is None or loop not in x.axes:
        raise call.error("needs to be in a rec layer, and an input that differs from frame to frame")
    return x.relabelled(loop, loop.derived(("history", name), lambda: _causal(loop, name)))


def _causal(loop: Axis, name: str) -> Axis:
    """All frames, of which frame t of the loop has the first t + 1."""
    return Axis(name, loop.size, lengths=torch.arange(1, loop.size + 1), over=(loop,))


def _grown(call: LayerCall, x: NamedTensor, name: str) -> NamedTensor:
    before = (call.state() or {}).get("frames")
    beam = latest_beam([x, *([before] if before is not None else [])])
    if beam is not None:
        x = to_beam(x, beam)
        before = to_beam(before, beam) if before is not None else None
    step = call.scope.step
    assert step is not None
    axes_of_run = call.run.batch.derived("new axes", lambda: Axis("new", 0))
    axis = axes_of_run.derived((step.rec.net.path, name, step.t), lambda: Axis(name, step.t + 1))
    lead = [a for a in x.axes if a.is_batch_like]
    if before is not None:
        lead += [a for a in before.axes if a.is_batch_like and a not in lead]
    rest = [a for a in x.axes if a not in lead]
    parts = [x.expanded([*lead, *rest]).unsqueeze(len(lead))]
    if before is not None:
        old = next(a for a in before.axes if a not in lead and a not in rest)
        parts.insert(0, before.expanded([*lead, old, *rest]))
    frames = x.like(torch.cat(parts, len(lead)), [*lead, axis, *rest])
    call.set_state({"frames": frames})
    return frames
