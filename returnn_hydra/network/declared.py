"""Values of user code whose type the config declares (`out_type`, `size_target`): which axes they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.axis import Axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.network.tf_face.data import DeclaredData, UserData
from returnn_hydra.network.tf_face.network import UserLayer


def declared_type(call: LayerCall) -> Mapping[str, Any] | None:
    """`out_type` of a layer: a dict, or a function of the config that makes RETURNN's `Data`; None: not given."""
    given = call.options.get("out_type")
    if callable(given):
        user = UserLayer(call)
        given = given(sources=user.sources, network=user.network, name=call.name)
    if isinstance(given, UserData):  # like a source
        return {"shape": given.shape, "dim": given.dim, "sparse": given.sparse}
    if isinstance(given, DeclaredData):
        return given.options
    return given if isinstance(given, Mapping) else None


def as_declared(call: LayerCall, raw: Tensor, lead: Sequence[Axis], declared: Mapping[str, Any]) -> NamedTensor | None:
    """The values with axes that fit their sizes: those of `size_target`, of the declared lengths, of the sources.

    Args:
        raw: the batch first, if there is one.
        lead: the batch, with beams and frames of loops.

    Returns:
        None: there are no such axes.
    """
    sparse = bool(declared.get("sparse"))
    batch = list(lead) if declared.get("batch_dim_axis", 0) is not None else []
    if len(batch) > 1:
        raw = raw.unflatten(0, [axis.size for axis in batch])
    dim = None if sparse else declared.get("dim")
    axes: list[Axis] = []
    for place, size in enumerate(raw.shape[len(batch) :]):
        last = place == raw.dim() - len(batch) - 1
        if last and size == dim:
            axes.append(call.new_feature(size))
            continue
        lengths = (declared.get("size_placeholder") or {}).get(place)
        axis = next((a for a in _candidates(call, lengths) if a.size == size and a not in (*axes, *batch)), None)
        if axis is None and lengths is not None:
            axis = Axis(f"{call.name}:time", size, lengths=lengths.cpu().long(), over=batch[:1])
        if axis is None:
            return None
        axes.append(axis)
    feature = axes[-1] if axes and dim is not None and axes[-1].size == dim else None
    classes = declared.get("dim") or getattr(declared.get("sparse_dim"), "dimension", None)
    return NamedTensor(raw, (*batch, *axes), feature=feature, sparse_dim=classes if sparse else None)


def _candidates(call: LayerCall, lengths: Tensor | None) -> list[Axis]:
    tensors = list(call.sources)
    if call.options.get("size_target"):
        tensors.insert(0, call.scope.target(str(call.options["size_target"])))
    found = [axis for tensor in tensors for axis in tensor.axes if axis.is_dynamic]
    if lengths is not None:
        found = [
            axis for axis in found if axis.lengths is not None and torch.equal(axis.lengths.int(), lengths.cpu().int())
        ]
    return found
