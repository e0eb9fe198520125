"""A torch tensor whose axes are named, and what layers need to compute with it.

Legend: B batch, T time, F feature, N all axes that a computation does not care about, flattened.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.axis import BATCH, BEAM, FEATURE, Axis
from returnn_hydra.network.errors import NetworkError


@dataclass(frozen=True)
class NamedTensor:
    """Values, and the axes that they run over; `raw.shape` equals the sizes of `axes`."""

    raw: Tensor
    axes: tuple[Axis, ...]
    feature: Axis | None = None
    """The feature axis (None: class indices, or one number per position)."""
    time: Axis | None = None
    """The time axis, where it is not simply the first dynamic one."""
    sparse_dim: int | None = None
    """Number of classes if the values are class indices."""
    vocab: Any = None
    before_activation: tuple[str, NamedTensor] | None = None
    """Name of the last activation and its input: losses use it instead of a log of a softmax."""
    state: dict[str, NamedTensor] | None = field(default=None, repr=False)
    """Hidden state after the last frame, of recurrent layers."""
    parts: dict[str, NamedTensor] | None = field(default=None, repr=False)
    """Sub-layers (`layer/part`)."""

    def __post_init__(self) -> None:
        if list(self.raw.shape) != [axis.size for axis in self.axes]:
            raise NetworkError(f"shape {tuple(self.raw.shape)} does not fit the axes {list(self.axes)}")

    @property
    def dim(self) -> int | None:
        """Number of features, or of classes."""
        return self.sparse_dim if self.feature is None else self.feature.size

    @property
    def time_axis(self) -> Axis | None:
        if self.time is not None and self.time in self.axes:
            return self.time
        return next((axis for axis in self.axes if axis.is_dynamic), None)

    @property
    def batch_axis(self) -> Axis | None:
        return next((axis for axis in self.axes if axis.kind == BATCH), None)

    @property
    def beam_axis(self) -> Axis | None:
        return next((axis for axis in self.axes if axis.kind == BEAM), None)

    def index(self, axis: Axis) -> int:
        return self.axes.index(axis)

    def like(self, raw: Tensor, axes: Sequence[Axis] | None = None, **changes: Any) -> NamedTensor:
        """Other values, same meaning; the feature and time marks stay if their axes stay."""
        new_axes = self.axes if axes is None else tuple(axes)
        values: dict[str, Any] = {
            "feature": self.feature if self.feature in new_axes else None,
            "time": self.time if self.time in new_axes else None,
            "sparse_dim": self.sparse_dim,
            "vocab": self.vocab,
        }
        values.update(changes)
        return NamedTensor(raw, new_axes, **values)

    def dense(self, raw: Tensor, axes: Sequence[Axis] | None = None, **changes: Any) -> NamedTensor:
        """Like `like`, for values that are no class indices any more."""
        return self.like(raw, axes, **{"sparse_dim": None, "vocab": None, **changes})

    def to_axes(self, axes: Sequence[Axis]) -> Tensor:
        """The values with exactly these axes in this order; missing ones get size 1."""
        if len(axes) == len(self.axes) and all(map(operator.is_, axes, self.axes)):
            return self.raw  # the usual case, in every layer of every frame of a loop
        order = [self.axes.index(axis) for axis in axes if axis in self.axes]
        if len(order) != len(self.axes):
            extra = [axis for axis in self.axes if axis not in axes]
            raise NetworkError(f"unexpected axes {extra}, only {list(axes)} fit here")
        raw = self.raw.permute(order)
        for position, axis in enumerate(axes):
            if axis not in self.axes:
                raw = raw.unsqueeze(position)
        return raw

    def expanded(self, axes: Sequence[Axis]) -> Tensor:
        """Like `to_axes`, with missing axes broadcast to their full size."""
        raw = self.to_axes(axes)
        return raw if len(axes) == len(self.axes) else raw.expand([axis.size for axis in axes])

    def moved_last(self, *axes: Axis) -> NamedTensor:
        rest = [axis for axis in self.axes if axis not in axes]
        order = [*rest, *axes]
        return self._with(self.raw.permute([self.index(axis) for axis in order]), tuple(order))

    def rows(self, *core: Axis) -> tuple[Tensor, tuple[Axis, ...]]:
        """(N, *core), and the axes that N consists of."""
        other = tuple(axis for axis in self.axes if axis not in core)
        raw = self.expanded([*other, *core])
        return raw.reshape(math.prod(axis.size for axis in other), *[axis.size for axis in core]), other

    def batch_major(self) -> NamedTensor:
        """Batch axis first (then the beam), the others in their order."""
        first = [axis for kind in (BATCH, BEAM) for axis in self.axes if axis.kind == kind]
        return self.ordered([*first, *[axis for axis in self.axes if axis not in first]])

    def ordered(self, axes: Sequence[Axis]) -> NamedTensor:
        return self._with(self.to_axes(axes), tuple(axes))

    def _with(self, raw: Tensor, axes: tuple[Axis, ...]) -> NamedTensor:
        return NamedTensor(
            raw,
            axes,
            self.feature,
            self.time,
            self.sparse_dim,
            self.vocab,
            self.before_activation,
            self.state,
            self.parts,
        )

    def select(self, axis: Axis, index: int) -> NamedTensor:
        """One entry of an axis; a tensor without the axis stays as it is."""
        if axis not in self.axes:
            return self
        raw = self.raw.select(self.index(axis), index)
        before = self.before_activation
        return self.like(
            raw,
            [other for other in self.axes if other is not axis],
            before_activation=(before[0], before[1].select(axis, index)) if before else None,
        )

    def relabelled(self, old: Axis, new: Axis) -> NamedTensor:
        """The same values with one axis under another identity (same size)."""
        before = self.before_activation
        return NamedTensor(
            self.raw,
            tuple(new if axis is old else axis for axis in self.axes),
            new if self.feature is old else self.feature,
            new if self.time is old else self.time,
            self.sparse_dim,
            self.vocab,
            (before[0], before[1].relabelled(old, new)) if before else None,
            self.state,
            self.parts,
        )

    def mask(self, axis: Axis) -> NamedTensor:
        """True at the real entries of a dynamic axis."""
        return NamedTensor(axis.mask(self.raw.device), (*axis.over, axis))

    def masked(self, axes: Sequence[Axis], value: float) -> Tensor:
        """The values with `value` at the padding of these axes."""
        raw = self.raw
        for axis in axes:
            if axis.is_dynamic and axis in self.axes:
                raw, keep = self._with_mask(raw, axis)
                raw = torch.where(keep, raw, torch.full((), value, dtype=raw.dtype, device=raw.device))
        return raw

    def zero_padding(self) -> NamedTensor:
        """Zero behind the end of every sequence."""
        return self.like(
            self.masked(self.axes, 0),
            before_activation=self.before_activation,
            state=self.state,
            parts=self.parts,
        )

    def _with_mask(self, raw: Tensor, axis: Axis) -> tuple[Tensor, Tensor]:
        mask = self.mask(axis)
        present = [other for other in mask.axes if other in self.axes]
        if len(present) != len(mask.axes):
            missing = [other for other in mask.axes if other not in self.axes]
            if any(other.kind != BATCH for other in missing):
                raise NetworkError(f"axis {axis} has lengths over {list(axis.over)}, which {list(self.axes)} lacks")
            return raw, torch.ones((), dtype=torch.bool, device=raw.device)  # the same for every sequence: no padding
        return raw, mask.to_axes(self.axes)


def to_beam(tensor: NamedTensor, beam: Axis) -> NamedTensor:
    """The tensor for the hypotheses of a later search step: each takes the values of the one it came from."""
    old = tensor.beam_axis
    if old is None or old is beam:
        return tensor
    choice: Any = beam.choice
    if choice is None or choice.source_beam is None:
        raise NetworkError(f"values of beam {old} are needed for {beam}, which does not come from it")
    return select_beams(to_beam(tensor, choice.source_beam), choice.source_beams, beam)


def select_beams(tensor: NamedTensor, parents: NamedTensor, beam: Axis) -> NamedTensor:
    """Gather along the tensor's beam axis: `parents` (B, beam) says which hypothesis each new one came from."""
    old = tensor.beam_axis
    assert old is not None
    batch = parents.axes[0]
    rest = [axis for axis in tensor.axes if axis not in (batch, old)]
    raw = tensor.expanded([batch, old, *rest])
    index = parents.raw.long()
    raw = raw[torch.arange(batch.size, device=raw.device)[:, None], index]
    before, state = tensor.before_activation, tensor.state
    changed = {axis: _reordered_axis(axis, old, parents, beam) for axis in rest}
    return tensor.like(
        raw,
        [batch, beam, *[changed[axis] for axis in rest]],
        feature=changed.get(tensor.feature, tensor.feature) if tensor.feature else None,
        time=changed.get(tensor.time, tensor.time) if tensor.time else None,
        before_activation=(before[0], select_beams(before[1], parents, beam))
        if before and before[1].beam_axis
        else None,
        state={key: select_beams(value, parents, beam) if value.beam_axis else value for key, value in state.items()}
        if state
        else None,
    )


def _reordered_axis(axis: Axis, old: Axis, parents: NamedTensor, beam: Axis) -> Axis:
    """Lengths that run over the old beam follow the hypotheses too."""
    if old not in axis.over:
        return axis
    assert axis.lengths is not None

    def make() -> Axis:
        lengths = NamedTensor(axis.lengths, axis.over).to_axes([parents.axes[0], old])  # type: ignore[arg-type]
        index = parents.raw.long().cpu()
        new_lengths = lengths[torch.arange(len(index))[:, None], index]
        return Axis(axis.name, axis.size, axis.kind, lengths=new_lengths, over=(parents.axes[0], beam))

    return axis.derived(("beam", beam), make)


def latest_beam(tensors: Sequence[NamedTensor]) -> Axis | None:
    """The beam axis that comes from all others."""
    beams = [tensor.beam_axis for tensor in tensors if tensor.beam_axis is not None]
    if not beams:
        return None
    best = beams[0]
    for beam in beams[1:]:
        if _descends(beam, best):
            best = beam
    return best


def _descends(beam: Axis, ancestor: Axis) -> bool:
    current: Axis | None = beam
    while current is not None:
        if current is ancestor:
            return True
        choice: Any = current.choice
        current = choice.source_beam if choice is not None else None
    return False


def unify(tensors: Sequence[NamedTensor], hidden: frozenset[Axis] = frozenset()) -> list[NamedTensor]:
    """The tensors with matching axes made identical.

    Axes match if they are the same, or both features, or both static or both dynamic with the same sizes (in order);
    `hidden` axes (the frames of a loop) only match themselves.

    Raises:
        NetworkError: two batch axes, or feature axes of different sizes.
    """
    beam = latest_beam(tensors)
    if beam is not None:
        tensors = [to_beam(tensor, beam) for tensor in tensors]
    result = list(tensors)
    order = sorted(range(len(tensors)), key=lambda i: -len(tensors[i].axes))
    known: list[Axis] = list(tensors[order[0]].axes)
    features = [tensors[order[0]].feature]
    for i in order[1:]:
        result[i] = _match_axes(result[i], known, features, hidden)
        known += [axis for axis in result[i].axes if axis not in known]
        features.append(result[i].feature)
    return result


def _match_axes(
    tensor: NamedTensor, known: list[Axis], features: list[Axis | None], hidden: frozenset[Axis]
) -> NamedTensor:
    for axis in tensor.axes:
        if axis in known:
            continue
        free = [other for other in known if other not in tensor.axes and other not in hidden]
        match = None if axis in hidden else _find_match(axis, tensor, free, features)
        if match is not None:
            if axis.size != match.size and axis.size == 1:  # broadcast: drop it
                position = tensor.index(axis)
                rest = tuple(other for other in tensor.axes if other is not axis)
                tensor = tensor.like(
                    tensor.raw.squeeze(position), rest, feature=None if tensor.feature is axis else tensor.feature
                )
            else:
                tensor = tensor.relabelled(axis, match)
    return tensor


def _find_match(axis: Axis, tensor: NamedTensor, free: list[Axis], features: list[Axis | None]) -> Axis | None:
    if axis.kind == BATCH:
        if any(other.kind == BATCH for other in free):
            raise NetworkError(f"two different batch axes meet: {axis} and {free}")
        return None
    if axis.kind == BEAM:
        return None
    if axis is tensor.feature:
        other = next((other for other in features if other is not None and other in free), None)
        if other is not None and (other.size == axis.size or axis.size == 1):
            return other
        if other is not None and other.size != 1:
            raise NetworkError(f"feature axes of different sizes meet: {axis} and {other}")
    candidates = [other for other in free if not other.is_batch_like]
    for other in candidates:
        if other.is_dynamic == axis.is_dynamic and axis.same_sizes(other):
            return other
    if axis.size == 1 and not axis.is_dynamic:
        return next((other for other in candidates if other not in features), None)
    return None


def common_axes(tensors: Sequence[NamedTensor]) -> tuple[Axis, ...]:
    """All axes of unified tensors, in the order of the one with most axes."""
    order = sorted(range(len(tensors)), key=lambda i: -len(tensors[i].axes))
    axes: list[Axis] = []
    for i in order:
        new = [axis for axis in tensors[i].axes if axis not in axes]
        if any(axis.kind == BATCH for axis in new):
            axes = [*[axis for axis in new if axis.is_batch_like], *axes]
            new = [axis for axis in new if axis not in axes]
        axes = _insert_before_feature(axes, new, [t.feature for t in tensors])
    # axes of size 1 that another one broadcasts against were dropped by unify
    return tuple(axes)


def _insert_before_feature(axes: list[Axis], new: list[Axis], features: list[Axis | None]) -> list[Axis]:
    if new and axes and axes[-1] in features and not any(axis in features or axis.kind == FEATURE for axis in new):
        return [*axes[:-1], *new, axes[-1]]
    return [*axes, *new]


def broadcast(
    tensors: Sequence[NamedTensor], hidden: frozenset[Axis] = frozenset()
) -> tuple[list[Tensor], NamedTensor]:
    """Raw tensors that torch broadcasts against each other, and a template that knows the axes of the result."""
    unified = unify(tensors, hidden)
    axes = common_axes(unified)
    raws = [tensor.to_axes(axes) for tensor in unified]
    first = max(unified, key=lambda tensor: len(tensor.axes))
    feature = next((t.feature for t in unified if t.feature is not None), None)
    time = next((t.time for t in unified if t.time is not None), None)
    shape = [axis.size for axis in axes]
    template = NamedTensor(
        torch.empty((), device=raws[0].device, dtype=raws[0].dtype).expand(shape),
        axes,
        feature=feature,
        time=time,
        sparse_dim=first.sparse_dim if feature is None else None,
        vocab=first.vocab if feature is None else None,
    )
    return raws, template
