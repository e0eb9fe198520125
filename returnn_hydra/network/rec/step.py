"""One frame of a loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from returnn_hydra.network.axis import Axis
from returnn_hydra.network.errors import NetworkError, nearest
from returnn_hydra.network.named_tensor import NamedTensor, to_beam
from returnn_hydra.network.scope import Scope

if TYPE_CHECKING:
    from returnn_hydra.network.rec.scope import RecScope

State = dict[str, NamedTensor]


@dataclass
class Frame:
    """What a frame leaves for the next one.

    Attributes:
        values: by the path of the layer.
        states: by the path of the layer.
        beam: of the last search step; None before the first.
        ended: hypotheses that have ended, (B[, beam]); None: none has.
        lengths: their lengths so far.
    """

    values: dict[str, NamedTensor] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    beam: Axis | None = None
    ended: NamedTensor | None = None
    lengths: NamedTensor | None = None


def follow(tensor: NamedTensor, beam: Axis | None) -> NamedTensor:
    """The tensor for the hypotheses of `beam`."""
    if beam is None or tensor.beam_axis is None or tensor.beam_axis is beam:
        return tensor
    moved = to_beam(tensor, beam)
    if tensor.state:
        state = {key: follow(value, beam) for key, value in tensor.state.items()}
        moved = moved.like(moved.raw, before_activation=moved.before_activation, state=state, parts=tensor.parts)
    return moved


class StepScope(Scope):
    """The layers of a loop at frame `t`; layers that are computed for all frames at once are only looked up.

    Args:
        rec: the loop.
        t: from 0.
        before: the previous frame; None at the first.
    """

    def __init__(self, rec: RecScope, t: int, before: Frame | None) -> None:
        super().__init__(
            rec.net,
            rec.run,
            rec.store,
            parent=rec.parent,
            param_prefix=rec.param_prefix,
            hidden=rec.outer_hidden,
            trainable=rec.trainable,
            reuse_prefix=rec.reuse_prefix,
        )
        self.rec = rec
        self.t = t
        self.before = before
        self.step = self
        self.loop_axis = None
        self.by_path: dict[str, NamedTensor] = {}
        self.new_states: dict[str, State] = {}
        self.beam: Axis | None = before.beam if before is not None else None

    def layer(self, name: str) -> NamedTensor:
        if name in self.rec.plan.loop:
            return super().layer(name)
        return self._at(self.rec.layer(name))

    def _at(self, value: NamedTensor) -> NamedTensor:
        return value.select(self.rec.loop, self.t) if self.rec.loop is not None else value

    def data(self, key: str) -> NamedTensor:
        return self._at(self.rec.data(key))

    def step_index(self) -> NamedTensor:
        return NamedTensor(torch.tensor(self.t, dtype=torch.int32, device=self.run.device), ())

    def previous_of(self, scope: Scope, name: str) -> NamedTensor:
        """A layer in the previous frame; at the first, its initial output."""
        if scope is self and name not in self.net and "/" in name:
            owner, _, rest = name.partition("/")
            value = self.previous_of(scope, owner)
            if value.parts and rest in value.parts:
                return value.parts[rest]
        if scope is self and name not in self.rec.plan.loop and name in self.net:
            return self.rec.previous_at(name, self.t)
        if name not in scope.net:
            raise NetworkError(
                f"{scope.net.path}: there is no layer {name!r} (prev:{name}){nearest(name, scope.net.layers)}"
            )
        path = f"{scope.net.path}{name}"
        if self.before is None:
            return self.rec.initial(scope, name)
        if path not in self.before.values:
            raise NetworkError(f"prev:{path} was not computed in the frame before")
        value = follow(self.before.values[path], self.before.beam)
        self.before.values[path] = value
        return value

    def state_of(self, path: str) -> State | None:
        if self.before is None or path not in self.before.states:
            return None
        state = {key: follow(value, self.before.beam) for key, value in self.before.states[path].items()}
        self.before.states[path] = state
        return state

    def ended(self) -> NamedTensor | None:
        """Which hypotheses ended before this frame, for the present beam.

        Where the number of frames is known, it says so, not the layer `end`; without `include_eos` the frame behind the
        last one still counts.
        """
        loop = self.rec.loop
        if loop is not None:
            if loop.lengths is None:
                return None
            last = loop.lengths if self.rec.include_eos else loop.lengths + 1
            return NamedTensor((self.t >= last).to(self.run.device), loop.over)
        if self.before is None or self.before.ended is None:
            return None
        return follow(self.before.ended, self.beam)

    def release(self) -> None:
        super().release()
        self.by_path.clear()
        self.new_states.clear()
        self.before = None

    def record(self, ended: NamedTensor | None, lengths: NamedTensor | None) -> Frame:
        return Frame(dict(self.by_path), dict(self.new_states), self.beam, ended, lengths)
