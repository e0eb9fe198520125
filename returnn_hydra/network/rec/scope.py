"""A network that is computed frame by frame, as far as it has to be.

Legend: B sequences, T frames of the loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.axis import Axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.errors import NetworkError
from returnn_hydra.network.losses import report_loss
from returnn_hydra.network.named_tensor import NamedTensor, select_beams
from returnn_hydra.network.net import Net
from returnn_hydra.network.rec.graph import Plan, layer_targets, make_plan
from returnn_hydra.network.rec.initial import InitialValues
from returnn_hydra.network.rec.search import SearchStep
from returnn_hydra.network.rec.step import Frame, StepScope, follow
from returnn_hydra.network.scope import Scope


class RecScope(Scope):
    """All frames of a loop.

    Args:
        owner: the `rec` layer.
        net: the network of a frame.
        source: input, with the axis `loop` (None: no input).
        loop: axis of the frames (None: how many, the search finds out).
        outer_axis: what `loop` is called outside.
        max_len: most frames of a search.
        include_eos: the frame in which a hypothesis ends belongs to it.
        move_out: compute layers for all frames at once where possible.
    """

    def __init__(
        self,
        owner: LayerCall,
        net: Net,
        source: NamedTensor | None,
        loop: Axis | None,
        outer_axis: Axis | None,
        max_len: int,
        include_eos: bool,
        move_out: bool,
    ) -> None:
        outer = owner.scope
        self.outer_hidden = outer.all_hidden
        super().__init__(
            net,
            outer.run,
            outer.store,
            parent=outer,
            param_prefix=f"{owner.param_path}/rec/",
            hidden=outer.all_hidden | ({loop} if loop is not None else set()),
            trainable=outer.trainable and owner.options.get("trainable", True) is not False,
        )
        self.owner = owner
        self.source = source
        self.loop = loop
        self.loop_axis = loop
        self.outer_axis = outer_axis
        self.max_len = max_len
        self.include_eos = include_eos
        self.stacked: dict[str, NamedTensor] = {}
        self.final_beam: Axis | None = None
        self._has_run = False
        self.initials = InitialValues(self)
        self.plan = self._make_plan(move_out)

    @property
    def reports_losses(self) -> bool:
        return self.run.with_losses and (self.is_extra or not self.run.search)

    def wanted(self) -> list[str]:
        """Layers that are computed for their own sake or for layers outside."""
        roots = self.net.roots(self.run.search, self.reports_losses)
        targets = [ref for name in roots for ref in layer_targets(self.net.layers[name])] if self.reports_losses else []
        names = [name for name in (*targets, *self.outside_references()) if name in self.net]
        if not self.run.search:
            names = [name for name in names if not self.net.layers[name].get("only_on_search")]
        return list(dict.fromkeys(["output", *roots, *names]))

    def outside_references(self) -> list[str]:
        """`rec/NAME` in the network around."""
        prefix = f"{self.owner.name}/"
        found = []
        for name in self.owner.scope.net.layers:
            if name == self.owner.name:
                continue
            for ref in _all_strings(self.owner.scope.net.layers[name]):
                ref = ref.removeprefix("base:").removeprefix(self.owner.scope.net.path)
                if ref.startswith(prefix):
                    found.append(ref.removeprefix(prefix).partition("/")[0])
        return found

    def _make_plan(self, move_out: bool) -> Plan:
        roots = self.wanted()
        if self.loop is None:
            roots = [*roots, "end"]
        varying = frozenset(key for key in self._streams() if self._varies(key))
        key = (tuple(roots), varying, self.run.search, self.loop is None, move_out)
        if key not in self.net.memo:
            self.net.memo[key] = make_plan(self.net, roots, varying, self.run.search, self.loop is not None, move_out)
        return self.net.memo[key]

    def _streams(self) -> list[str]:
        return ["data:source", *[f"data:{key}" for key in self.run.data]]

    def _varies(self, key: str) -> bool:
        name = key.removeprefix("data:")
        if name == "source" and self.source is None:
            return False
        return self.loop is not None and self.loop in self.data(name).axes

    # --- looking up

    def data(self, key: str) -> NamedTensor:
        if key == "source":
            if self.source is None:
                raise NetworkError(f"{self.owner.path}: 'data:source', but the rec layer has no input ('from')")
            return self.source
        value = self.parent.data(key) if self.parent is not None else self.run.data[key]
        if self.loop is None:
            return value
        for axis in value.axes:
            if axis is self.outer_axis or (axis.is_dynamic and axis.same_sizes(self.loop) and axis is not self.loop):
                return value.relabelled(axis, self.loop)
        return value

    def layer(self, name: str) -> NamedTensor:
        if name in self.plan.loop:
            self.run_loop()
            if name not in self.stacked:
                raise NetworkError(f"{self.net.path}{name}: its frames were not kept; set is_output_layer")
            return self.stacked[name]
        return super().layer(name)

    def exposed(self, ref: str) -> NamedTensor:
        """A layer as the network around sees it."""
        return self.outward(self.get(ref))

    def outward(self, value: NamedTensor) -> NamedTensor:
        if self.loop is not None and self.outer_axis is not None and self.loop in value.axes:
            value = value.relabelled(self.loop, self.outer_axis)
        return self.parent.outward(value) if self.parent is not None else value

    def step_index(self) -> NamedTensor:
        if self.loop is None:
            raise NetworkError(f"{self.owner.path}: ':i' of all frames is not known in search")
        return NamedTensor(torch.arange(self.loop.size, dtype=torch.int32, device=self.run.device), (self.loop,))

    def previous(self, name: str) -> NamedTensor:
        """All previous frames at once: shifted by one, the initial output in front."""
        value = self.layer(name)
        assert self.loop is not None
        first = self.initials.of(self, name)
        if self.loop not in value.axes:
            value = value.like(value.expanded([self.loop, *value.axes]), [self.loop, *value.axes])
        rest = [axis for axis in value.axes if axis is not self.loop]
        fill = first.to_axes(rest).expand([axis.size for axis in rest]).to(value.raw.dtype)
        raw = torch.cat([fill[None], value.expanded([self.loop, *rest])[:-1]], 0)
        return value.like(raw, [self.loop, *rest])

    def previous_at(self, name: str, t: int) -> NamedTensor:
        """The previous frame of a layer that is computed for all frames at once."""
        if t == 0:
            return self.initials.of(self, name)
        value = self.layer(name)
        return value.select(self.loop, t - 1) if self.loop is not None else value

    def initial(self, scope: Scope, name: str) -> NamedTensor:
        return self.initials.of(scope, name)

    def release(self) -> None:
        super().release()
        self.stacked.clear()
        self.initials.release()
        self.owner.release()
        self.source = None

    # --- the loop

    def run_loop(self) -> None:
        """Compute the frames of the layers that need it, and keep those that are needed behind."""
        if self._has_run:
            return
        self._has_run = True
        frames: list[Frame] = []
        before: Frame | None = None
        steps = self.max_len if self.loop is None else self.loop.size
        keep = sorted(self.plan.kept)
        for t in range(steps):
            step = StepScope(self, t, before)
            for name in (*keep, *sorted(self.plan.previous)):
                step.get(name)
            before = self._finish_frame(step, before)
            frames.append(Frame({name: step.get(name) for name in keep}, {}, step.beam))
            step.release()
            if self.loop is None and before.ended is not None and bool(before.ended.raw.all()):
                break
        self._stack(frames, before)
        for name in keep:
            self._report(name)

    def _finish_frame(self, step: StepScope, before: Frame | None) -> Frame:
        ended, lengths = None, None
        if self.loop is None and "end" in self.plan.loop:
            now = step.get("end")
            now = _flag(follow(now, step.beam))
            was = step.ended()
            axes = _lead(now, was, step)
            flag = now.expanded(axes).bool()
            count = torch.full_like(flag, step.t + 1 if self.include_eos else step.t, dtype=torch.long)
            count = torch.where(flag, count, torch.full_like(count, step.t + 1))
            if was is not None and before is not None and before.lengths is not None:
                old = was.expanded(axes)
                count = torch.where(old, follow(before.lengths, step.beam).expanded(axes), count)
                flag = flag | old
            ended, lengths = NamedTensor(flag, tuple(axes)), NamedTensor(count, tuple(axes))
        return step.record(ended, lengths)

    def _stack(self, frames: list[Frame], last: Frame | None) -> None:
        """All frames of the kept layers, each for the final hypotheses."""
        if self.loop is None:
            self._set_length(frames, last)
        assert self.loop is not None
        beams = self._backtrace(frames, last)
        count = self.loop.size
        for name in frames[0].values if frames else self.plan.kept:
            values = [
                _of_final(frame.values[name], frame.beam, places)
                for frame, places in zip(frames[:count], beams[:count], strict=True)
            ]
            if values:
                self.stacked[name] = stack_frames(values, self.loop)
            else:  # every hypothesis is empty
                first = self.initials.template(self, name)
                if frames:
                    first = _of_final(frames[0].values[name], frames[0].beam, beams[0])
                raw = first.raw.new_zeros(0, *first.raw.shape)
                self.stacked[name] = first.like(raw, [self.loop, *first.axes])

    def _set_length(self, frames: list[Frame], last: Frame | None) -> None:
        if last is None or last.lengths is None:
            raise NetworkError(f"{self.owner.path}: a search without input needs a layer 'end'")
        counts = last.lengths.raw.detach().cpu()
        over = last.lengths.axes
        if last.beam is not None:
            self.final_beam = self._final_beam(last.beam, int(counts.max()))
            over = tuple(self.final_beam if axis is last.beam else axis for axis in over)
        size = min(int(counts.max()) if counts.numel() else 0, len(frames))
        self.loop = Axis(f"{self.owner.name}:dyn-time", size, lengths=counts, over=over)
        self.loop_axis = self.loop
        self.hidden = self.hidden | {self.loop}

    def _final_beam(self, beam: Axis, longest: int) -> Axis:
        """The last beam, with length-normalised scores."""
        choice = beam.choice
        assert isinstance(choice, SearchStep)
        scores = choice.scores
        if choice.normalize:
            scores = scores.like(scores.raw / max(longest + (0 if self.include_eos else 1), 1))
        final = Axis(beam.name, beam.size, beam.kind)
        scores = scores.relabelled(beam, final)
        batch = scores.axes[0]
        places = torch.arange(beam.size, device=scores.raw.device).expand(batch.size, -1)
        final.choice = SearchStep(beam, NamedTensor(places, (batch, final)), scores, choice.normalize)
        return final

    def _backtrace(self, frames: list[Frame], last: Frame | None) -> list[NamedTensor | None]:
        """Per frame, which of its hypotheses every final one came from."""
        if last is None or last.beam is None:
            return [None] * len(frames)
        if self.final_beam is None:
            longest = int(self.loop.lengths.max()) if self.loop and self.loop.lengths is not None else len(frames)
            self.final_beam = self._final_beam(last.beam, longest)
        choice = self.final_beam.choice
        assert isinstance(choice, SearchStep)
        places: NamedTensor = choice.source_beams
        beam: Axis | None = last.beam
        found: list[NamedTensor | None] = []
        for frame in reversed(frames):
            while beam is not None and beam is not frame.beam:
                step = beam.choice
                assert isinstance(step, SearchStep)
                raw = step.source_beams.raw.gather(1, places.raw)
                places, beam = places.like(raw), step.source_beam
            found.append(places if beam is not None else None)
        return found[::-1]

    def _report(self, name: str) -> None:
        """Losses of a layer that was computed in the loop."""
        spec = self.net.spec(name)
        value = self.stacked[name]
        self.run.outputs.setdefault(spec.path, self.outward(value))
        if spec.options.get("loss") and self.reports_losses:
            report_loss(LayerCall(self, spec), value)


def _flag(value: NamedTensor) -> NamedTensor:
    """`end` without feature axis, as old configs have it: (B, 1)."""
    for axis in value.axes:
        if axis.size == 1 and not axis.is_batch_like and not axis.is_dynamic:
            value = value.select(axis, 0)
    return value


def _lead(now: NamedTensor, was: NamedTensor | None, step: StepScope) -> list[Axis]:
    axes = list(now.axes)
    if was is not None:
        axes += [axis for axis in was.axes if axis not in axes]
    batch = step.run.batch
    if not any(axis.kind == "batch" for axis in axes):
        axes = [batch, *axes]
    if step.beam is not None and step.beam not in axes:
        axes.append(step.beam)
    return sorted(axes, key=lambda axis: axis.kind != "batch")


def _of_final(value: NamedTensor, beam: Axis | None, places: NamedTensor | None) -> NamedTensor:
    if value.beam_axis is None or places is None:
        return value
    return select_beams(follow(value, beam), places, places.axes[1])


def stack_frames(values: Sequence[NamedTensor], loop: Axis) -> NamedTensor:
    """Frames along a new first axis; axes that some of them lack are broadcast."""
    template = max(reversed(values), key=lambda value: len(value.axes))
    raws: list[Tensor] = []
    for value in values:
        aligned = value
        if set(value.axes) - set(template.axes):
            raise NetworkError(f"frames have different axes: {list(value.axes)} and {list(template.axes)}")
        raws.append(aligned.to_axes(template.axes).expand([axis.size for axis in template.axes]))
    before = None
    if all(value.before_activation is not None for value in values):
        inner = [value.before_activation[1] for value in values if value.before_activation]
        name = values[0].before_activation[0] if values[0].before_activation else ""
        before = (name, stack_frames(inner, loop))
    result = template.like(torch.stack(raws), [loop, *template.axes], before_activation=before)
    return result


def _all_strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for part in value.values() for text in _all_strings(part)]
    if isinstance(value, (list, tuple)):
        return [text for part in value for text in _all_strings(part)]
    return []
