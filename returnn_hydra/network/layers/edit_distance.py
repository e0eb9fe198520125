"""Edit distances of the hypotheses inside of a loop.

Legend: B sequences, K hypotheses, S labels of the target, V classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.axis import Axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.named_tensor import NamedTensor, to_beam
from returnn_hydra.network.registry import register_layer
from returnn_hydra.nn.labels import next_edit_row


def _target(call: LayerCall) -> tuple[Tensor, Axis, Axis, Axis]:
    """Labels (B, S), their axes, and the axis of a row of the table (one longer)."""
    target = call.scope.target(call.default_target())
    batch, time = target.batch_axis, call.finder.time(target)
    if batch is None or time is None or target.sparse_dim is None:
        raise call.error(
            "the target must be a sequence of labels; inside of a loop that is target = 'layer:base:data:NAME'"
        )
    row = time.with_lengths(("add", 1), f"{time.name}+1", time.size + 1, lambda lengths: lengths + 1)
    return target.ordered([batch, time]).raw, batch, time, row


def empty_row(call: LayerCall) -> NamedTensor:
    """Distances of no label at all: 0, 1, ..., S."""
    labels, batch, _, row = _target(call)
    counts = torch.arange(row.size, dtype=torch.int32, device=labels.device)
    return NamedTensor(counts.expand(batch.size, -1), (batch, row), time=row)


def _ended(call: LayerCall, axes: list[Axis]) -> Tensor | None:
    """Hypotheses that ended before this frame, with a last axis of size 1."""
    assert call.scope.step is not None
    ended = call.scope.step.ended()
    return None if ended is None else ended.to_axes(axes)[..., None]


@register_layer("edit_distance_table")
def edit_distance_table(
    call: LayerCall, *, blank_idx: int | None = None, axis: Any = None, debug: bool = False, out_dim: Any = None
) -> NamedTensor:
    """Distances of the labels so far to all beginnings of the target: (B, K) labels -> (B, K, S+1).

    Ended hypotheses keep theirs; labels `blank_idx` count as none.
    """
    del axis, debug, out_dim
    x = call.x
    if not call.stepping or call.finder.time(x) is not None or x.sparse_dim is None:
        raise call.error("expects one label per step inside of a rec layer, e.g. from 'output'")
    labels, batch, time, row = _target(call)
    before = call.state()
    last = empty_row(call) if before is None else before["row"]
    last = last if x.beam_axis is None else to_beam(last, x.beam_axis)
    lead = [batch, *[a for a in x.axes if a is not batch]]
    old = last.expanded([*lead, row])
    targets = NamedTensor(labels, (batch, time)).to_axes([*lead, time])
    label = x.expanded(lead)[..., None]
    new = next_edit_row(old, targets != label).to(torch.int32)
    keep = _ended(call, lead)
    if blank_idx is not None:
        keep = label == blank_idx if keep is None else keep | (label == blank_idx)
    result = NamedTensor(new if keep is None else torch.where(keep, old, new), (*lead, row), time=row)
    call.set_state({"row": result})
    return result


@register_layer("optimal_completions")
def optimal_completions(call: LayerCall, *, blank_idx: int | None = None, debug: bool = False) -> NamedTensor:
    """Per next label, the distance to the target if all labels behind it were as good as possible: (B, K, V).

    The source is the row of the frame before: `prev:NAME` of an `edit_distance_table`.
    """
    del debug
    x = call.x
    labels, batch, time, row = _target(call)
    if not call.stepping or row not in x.axes:
        raise call.error("expects 'from': 'prev:NAME' of an 'edit_distance_table' with the same target, in a loop")
    classes = call.scope.target(call.default_target()).sparse_dim or 0
    classes = classes if blank_idx is None else max(classes, blank_idx + 1)
    feature = call.new_feature(classes)
    lead = [a for a in x.axes if a is not row]
    old = x.expanded([*lead, row])
    targets = NamedTensor(labels, (batch, time)).to_axes([*lead, time])
    differs = targets.unsqueeze(-2) != torch.arange(classes, device=old.device)[:, None]  # (..., V, S)
    rows = next_edit_row(old.unsqueeze(-2).expand(*old.shape[:-1], classes, -1), differs)
    real = NamedTensor(row.mask(old.device), (*row.over, row)).to_axes([*lead, row])
    far = torch.iinfo(torch.int32).max
    best = rows.masked_fill(~real.unsqueeze(-2), far).amin(-1)
    kept = old.masked_fill(~real, far).amin(-1, keepdim=True).expand_as(best)
    keep = _ended(call, lead)
    if keep is not None:
        best = torch.where(keep, kept, best)
    if blank_idx is not None:
        best = torch.where(torch.arange(classes, device=old.device) == blank_idx, kept, best)
    return NamedTensor(best.to(torch.int32), (*lead, feature), feature=feature)
