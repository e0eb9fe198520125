"""Expressions of the sources of a layer (`eval`), as strings or as functions of the config."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.axis import BATCH, BEAM, Axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.declared import as_declared, declared_type
from returnn_hydra.network.errors import NetworkError
from returnn_hydra.network.expressions import evaluate_expression
from returnn_hydra.network.named_tensor import NamedTensor, broadcast
from returnn_hydra.network.tf_face.data import UserData
from returnn_hydra.network.tf_face.namespace import SHORT_NAMES, tf_namespace
from returnn_hydra.network.tf_face.network import UserLayer
from returnn_hydra.network.tf_face.tensor import tf_tensor


def evaluate_sources(call: LayerCall, expression: Any, local: Mapping[str, Any] | None) -> NamedTensor:
    """The value of an expression in `source(i)`, as a tensor with the axes of the sources.

    Functions see batch-major tensors whose axes are those of all sources together; beams and frames of loops are part
    of the batch.

    Args:
        expression: text, or a function `(source, **kwargs)`.
        local: more names that the text may use, or arguments for the function.
    """
    if not call.sources:
        raise call.error("needs sources")
    together = _Together(call)

    def source(
        i: int, auto_convert: bool = True, enforce_batch_major: bool = False, as_data: bool = False
    ) -> Tensor | UserData:
        if not 0 <= i < len(call.sources):
            raise call.error(f"source({i}): there are {len(call.sources)} sources")
        if as_data:
            return UserData(call.sources[i], call.scope.all_hidden)
        if auto_convert or enforce_batch_major:
            return tf_tensor(together.prepared[i])
        return tf_tensor(call.sources[i].batch_major().raw)

    if callable(expression):
        value = expression(**{"source": source, "self": UserLayer(call), **(local or {})})
    else:
        names: dict[str, Any] = {**SHORT_NAMES, "tf": tf_namespace(), "source": source, "self": UserLayer(call)}
        names.update({"network": names["self"].network, **(local or {})})
        value = evaluate_expression(str(expression), names, call.path)
    return _result(call, together, value)


class _Layout:
    """How user code sees tensors: (batch with beams and frames of loops, other axes in their order)."""

    def __init__(self, template: NamedTensor, hidden: frozenset[Axis]) -> None:
        self.template = template
        self.first = [a for a in template.axes if a.kind in (BATCH, BEAM) or a in hidden]
        self.first.sort(key=lambda a: (a.kind != BATCH, a.kind != BEAM))
        self.rest = [axis for axis in template.axes if axis not in self.first]

    def to_user(self, raw: Tensor) -> Tensor:
        order = [self.template.index(axis) for axis in (*self.first, *self.rest)]
        raw = raw.permute(order)
        if len(self.first) > 1:
            lead = raw.expand(*[axis.size for axis in self.first], *raw.shape[len(self.first) :])
            raw = lead.flatten(0, len(self.first) - 1)
        return raw

    def from_user(self, raw: Tensor, rest: list[Axis]) -> tuple[Tensor, list[Axis]]:
        if len(self.first) > 1 and raw.dim() == len(rest) + 1 and raw.shape[0] != 1:
            raw = raw.unflatten(0, [axis.size for axis in self.first])
            return raw, [*self.first, *rest]
        if len(self.first) > 1 and raw.dim() == len(rest) + 1:
            raw = raw.reshape(*[1] * len(self.first), *raw.shape[1:])
            return raw, [*self.first, *rest]
        return raw, [*self.first[: raw.dim() - len(rest)], *rest]


class _Together:
    """All sources as functions see them by default: with the axes of all of them. Computed when it is needed."""

    def __init__(self, call: LayerCall) -> None:
        self.call = call

    @cached_property
    def _broadcast(self) -> tuple[list[Tensor], _Layout]:
        raws, template = broadcast(self.call.sources, self.call.scope.all_hidden)
        return raws, _Layout(template, self.call.scope.all_hidden)

    @property
    def layout(self) -> _Layout:
        return self._broadcast[1]

    @cached_property
    def prepared(self) -> list[Tensor]:
        raws, layout = self._broadcast
        return [layout.to_user(raw) for raw in raws]

    def lead(self) -> list[Axis]:
        """The batch, beams and frames of loops, for sources that have no axes in common."""
        found = [a for source in self.call.sources for a in _Layout(source, self.call.scope.all_hidden).first]
        return sorted(dict.fromkeys(found), key=lambda a: (a.kind != BATCH, a.kind != BEAM))


def _result(call: LayerCall, together: _Together, value: Any) -> NamedTensor:
    """A tensor from user code: its axes are those of the template, or fewer, or with another feature size."""
    if isinstance(value, UserData):
        return value.named
    if not isinstance(value, Tensor):
        value = torch.as_tensor(value, device=call.device)
    raw = value.as_subclass(Tensor)
    declared = declared_type(call)
    try:
        layout = together.layout
    except NetworkError:  # sources that do not fit together: the declared type says it all
        value = as_declared(call, raw, together.lead(), declared) if declared is not None else None
        if value is None:
            raise
        return value
    if declared is not None and not _fits(layout, raw, declared):
        value = as_declared(call, raw, layout.first, declared)
        if value is not None:
            return value
    template = layout.template
    rest = list(layout.rest)
    lead = 1 if layout.first else 0
    if raw.dim() == len(rest) + lead - 1 and template.feature in rest:
        rest.remove(template.feature)  # reduced over the features
    if raw.dim() == 0:
        raw, rest = raw.reshape([1] * (len(rest) + lead)), rest
    if raw.dim() != len(rest) + lead:
        raise call.error(f"the expression gave shape {tuple(raw.shape)}, expected the axes {[*layout.first, *rest]}")
    changed = [_fitting(call, axis, raw.shape[i + lead], template) for i, axis in enumerate(rest)]
    raw, axes = layout.from_user(raw, changed)
    raw = raw.expand([axis.size for axis in axes])
    feature = next((new for old, new in zip(rest, changed, strict=True) if old is template.feature), None)
    integer = not raw.is_floating_point() and raw.dtype != torch.bool
    result = NamedTensor(
        raw,
        tuple(axes),
        feature=feature,
        time=template.time if template.time in axes else None,
        sparse_dim=template.sparse_dim if integer and feature is None else None,
        vocab=template.vocab if integer and feature is None else None,
    )
    return _with_classes(result, declared or {})


def _fits(layout: _Layout, raw: Tensor, declared: Mapping[str, Any]) -> bool:
    """Has the value the axes of the sources, as far as the declared type tells?"""
    lead = 1 if layout.first else 0
    if raw.dim() != len(layout.rest) + lead:
        return False
    shape = declared.get("shape")
    return shape is None or len(shape) == len(layout.rest)


def _fitting(call: LayerCall, axis: Axis, size: int, template: NamedTensor) -> Axis:
    if size == axis.size:
        return axis
    if axis is template.feature:
        return call.new_feature(size)
    if size == 1:  # reduced, with keepdims
        return Axis(f"{call.name}:reduced", 1)
    if axis.is_dynamic:
        raise call.error(f"the expression changed the axis {axis} to size {size}")
    return Axis(f"{call.name}:eval", size)


def _with_classes(result: NamedTensor, out_type: Mapping[str, Any]) -> NamedTensor:
    """`out_type` may say that the values are class indices."""
    if out_type.get("sparse") or out_type.get("sparse_dim") is not None:
        size = out_type.get("dim") or getattr(out_type.get("sparse_dim"), "dimension", None)
        return result.like(result.raw, sparse_dim=size, feature=None)
    return result
