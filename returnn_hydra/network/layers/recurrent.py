"""Recurrent layers with a named unit, or with a network as unit.

Legend: N all batch-like axes, T frames, F features, H units; rows are (T, N, F).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.axis import Axis, feature_axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.layers.gather import pick
from returnn_hydra.network.named_tensor import NamedTensor, latest_beam, to_beam, unify
from returnn_hydra.network.rec.layer import run_network
from returnn_hydra.network.rec.units import State, Unit, make_unit, zero_state
from returnn_hydra.network.registry import register_layer

KEPT = "keep_over_epoch"


@register_layer("rec", refs=("initial_state",), sequential=True)
def rec(
    call: LayerCall,
    *,
    unit: Any = "lstm",
    unit_opts: Mapping[str, Any] | None = None,
    direction: int | None = None,
    input_projection: bool = True,
    initial_state: Any = None,
    max_seq_len: Any = None,
    max_seq_len_via: Any = None,
    forward_weights_init: Any = "glorot_uniform",
    recurrent_weights_init: Any = None,
    bias_init: Any = None,
    optimize_move_layers_out: bool | None = None,
    cheating: Any = False,
    include_eos: bool = False,
    axis: Any = None,
    use_global_rec_step_offset: bool = False,
    debug: Any = None,
    state_keep_over_epoch: bool = False,
    size_target: str | None = None,
    back_prop: bool | None = None,
) -> NamedTensor:
    """A recurrent unit over time, or a network that is computed frame by frame."""
    del recurrent_weights_init, bias_init, debug
    if max_seq_len_via is not None or use_global_rec_step_offset or state_keep_over_epoch or not input_projection:
        raise call.error(
            "options 'max_seq_len_via', 'use_global_rec_step_offset' and 'state_keep_over_epoch' are not supported"
        )
    if isinstance(unit, Mapping):
        if direction not in (None, 1):
            raise call.error(f"direction = {direction} with a network as unit is not supported")
        with torch.set_grad_enabled(back_prop is not False and torch.is_grad_enabled()):
            return run_network(call, unit, axis, max_seq_len, include_eos, cheating, optimize_move_layers_out)
    if size_target is not None:
        raise call.error("'size_target' only has a meaning with a network as unit")
    x = call.x
    size = call.need_n_out()
    init = _parse_init(forward_weights_init)
    loop = call.loop_axis
    time = loop if loop is not None and loop in x.axes else call.axis(x, axis) if axis else call.finder.time(x)
    if time is None:
        return unit_step(call, x, unit, unit_opts, size, initial_state, init)
    return _sequence(call, x, time, unit, unit_opts, size, initial_state, init, -1 if direction == -1 else 1)


def _parse_init(value: Any) -> Any:
    return value if value is not None else "glorot_uniform"


def _input(call: LayerCall, x: NamedTensor, time: Axis | None) -> tuple[Tensor, tuple[Axis, ...], int]:
    """([T,] N, F): class indices become one-hot."""
    if x.feature is None:
        if x.sparse_dim is None:
            raise call.error(f"needs features, but the input has {list(x.axes)}")
        hot = torch.nn.functional.one_hot(x.raw.long().clamp(0, x.sparse_dim - 1), x.sparse_dim)
        feature = feature_axis("one-hot", x.sparse_dim)
        x = NamedTensor(hot.to(torch.get_default_dtype()), (*x.axes, feature), feature=feature)
    assert x.feature is not None
    other = tuple(axis for axis in x.axes if axis not in (time, x.feature))
    lead = [time] if time is not None else []
    raw = x.expanded([*lead, *other, x.feature])
    count = math.prod(axis.size for axis in other)
    return raw.reshape(*raw.shape[: len(lead)], count, x.feature.size), other, x.feature.size


def _sequence(
    call: LayerCall,
    x: NamedTensor,
    time: Axis,
    unit_name: Any,
    unit_opts: Mapping[str, Any] | None,
    size: int,
    initial_state: Any,
    init: Any,
    direction: int,
) -> NamedTensor:
    rows, other, size_in = _input(call, x, time)
    unit = make_unit(call, unit_name, size_in, size, dict(unit_opts or {}), init)
    lengths = _row_lengths(time, other)
    feature = call.new_feature(size)
    state = given_state(call, unit, initial_state, other, size, rows[0] if time.size else rows.sum(0))
    if direction < 0:
        rows = reverse_rows(rows, lengths)
    memo = call.spec.memo

    def run(need: bool) -> tuple[Tensor, State | None]:
        outputs, final = unit.sequence(rows, lengths, state, need)
        return (reverse_rows(outputs, lengths) if direction < 0 else outputs), final

    kept = initial_state == KEPT
    outputs, final = run(kept or bool(memo.get("needs_state")))
    if kept and final is not None and not call.run.building:
        call.run.kept_states[call.path] = {key: part.detach() for key, part in final.items()}
    sizes = [axis.size for axis in other]
    axes = (time, *other, feature)

    def later() -> dict[str, NamedTensor]:
        """The final state, computed when it is asked for; from then on it comes with the outputs."""
        memo["needs_state"] = True
        found = final if final is not None else run(True)[1]
        assert found is not None
        return {k: NamedTensor(v.reshape(*sizes, size), (*other, feature), feature=feature) for k, v in found.items()}

    state_view = LazyState(later)
    result = NamedTensor(outputs.reshape(time.size, *sizes, size), axes, feature=feature, time=None, state=state_view)
    if x.time is time:
        result = NamedTensor(result.raw, axes, feature=feature, time=time, state=state_view)
    return result


class LazyState(dict[str, NamedTensor]):
    """The final state of a recurrent layer; nobody may ask for it."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self._make = make

    def __getitem__(self, key: str) -> NamedTensor:
        self._fill()
        return super().__getitem__(key)

    def _fill(self) -> None:
        if self._make is not None:
            make, self._make = self._make, None
            self.update(make())

    def items(self) -> Any:
        self._fill()
        return super().items()

    def __contains__(self, key: object) -> bool:
        self._fill()
        return super().__contains__(key)

    def __bool__(self) -> bool:
        return True


def _row_lengths(time: Axis, other: tuple[Axis, ...]) -> Tensor:
    """Frames of every row: (N,)."""
    if time.lengths is None:
        return torch.full((max(int(torch.tensor([a.size for a in other]).prod()), 1),), time.size)
    return NamedTensor(time.lengths, time.over).expanded(other).reshape(-1)


def reverse_rows(rows: Tensor, lengths: Tensor) -> Tensor:
    """Every row reversed within its own length: (T, N, F)."""
    steps = torch.arange(rows.shape[0])[:, None]
    source = torch.where(steps < lengths, lengths - 1 - steps, steps)
    flat = (source * rows.shape[1] + torch.arange(rows.shape[1])).reshape(-1).to(rows.device)
    return rows.reshape(-1, rows.shape[2]).index_select(0, flat).view(rows.shape)


def given_state(
    call: LayerCall, unit: Unit, given: Any, other: tuple[Axis, ...], size: int, like: Tensor
) -> State | None:
    """`initial_state`: None or zeros, a layer (its state, or its output), or one of these per part.

    "keep_over_epoch": the state behind the batch before.
    """
    if given is None or given in (0, "zeros"):
        return None
    if given == KEPT:
        state = call.run.kept_states.get(call.path)
        if state is not None and next(iter(state.values())).shape[0] != like.shape[0]:
            raise call.error(
                f"initial_state = {KEPT!r} needs batches of the same number of sequences: "
                f"{next(iter(state.values())).shape[0]} before, {like.shape[0]} now"
            )
        return state
    if isinstance(given, Mapping):
        return {key: _state_part(call, given.get(key), key, other, size, like) for key in unit.state_keys}
    if isinstance(given, (list, tuple)):
        return {
            key: _state_part(call, part, key, other, size, like)
            for key, part in zip(unit.state_keys, given, strict=True)
        }
    return {key: _state_part(call, given, key, other, size, like) for key in unit.state_keys}


def _state_part(call: LayerCall, given: Any, key: str, other: tuple[Axis, ...], size: int, like: Tensor) -> Tensor:
    if given is None or given in (0, "zeros"):
        return like.new_zeros(like.shape[0], size)
    if isinstance(given, (int, float)):
        return like.new_full((like.shape[0], size), float(given))
    if not isinstance(given, str):
        raise call.error(f"initial_state = {given!r} is neither a layer, a number nor 'zeros'")
    if given == "var":
        return call.param(f"initial_{key}", (size,), 0.0).expand(like.shape[0], size)
    layer = call.layer(given)
    value = layer.state[key] if layer.state and key in layer.state else layer
    if value.feature is None or value.feature.size != size:
        raise call.error(f"initial_state: layer {given!r} has {value.dim} features, expected {size}")
    raw = value.to_axes([*other, value.feature])
    return raw.expand(*[a.size for a in other], size).reshape(-1, size)


def unit_step(
    call: LayerCall,
    x: NamedTensor,
    unit_name: Any,
    unit_opts: Mapping[str, Any] | None,
    size: int,
    initial_state: Any,
    init: Any,
) -> NamedTensor:
    """One frame of a loop."""
    if initial_state == KEPT:
        raise call.error(f"initial_state = {KEPT!r} is only there for units over whole sequences")
    if not call.stepping:
        raise call.error(f"needs a time axis, but the input has {list(x.axes)}")
    before = call.state()
    beam = latest_beam([x, *(before or {}).values()])
    if beam is not None:
        x = to_beam(x, beam)
        before = {key: to_beam(part, beam) for key, part in before.items()} if before else before
    batch = [axis for axis in (*x.axes, *(a for s in (before or {}).values() for a in s.axes)) if axis.is_batch_like]
    x = _with_axes(call, x, batch)
    rows, other, size_in = _input(call, x, None)
    unit = make_unit(call, unit_name, size_in, size, dict(unit_opts or {}), init)
    feature = call.new_feature(size)
    if before is None:
        state = given_state(call, unit, initial_state, other, size, rows)
        state = state or zero_state(unit, rows.shape[0], size, rows)
    else:
        state = {key: _rows_of(part, other, size) for key, part in before.items()}
    y, new = unit.step(rows, state)
    sizes = [axis.size for axis in other]

    def named(raw: Tensor) -> NamedTensor:
        return NamedTensor(raw.reshape(*sizes, size), (*other, feature), feature=feature)

    call.set_state({key: named(value) for key, value in new.items()})
    return NamedTensor(
        y.reshape(*sizes, size), (*other, feature), feature=feature, state={k: named(v) for k, v in new.items()}
    )


def _with_axes(call: LayerCall, x: NamedTensor, axes: list[Axis]) -> NamedTensor:
    """x with at least the batch axis and these ones."""
    wanted = list(dict.fromkeys([*axes, *([call.run.batch] if not any(a.kind == "batch" for a in axes) else [])]))
    missing = [axis for axis in wanted if axis not in x.axes]
    if not missing:
        return x
    return x.like(x.expanded([*missing, *x.axes]), [*missing, *x.axes])


def _rows_of(part: NamedTensor, other: tuple[Axis, ...], size: int) -> Tensor:
    beam = next((axis for axis in other if axis.kind == "beam"), None)
    if beam is not None:
        part = to_beam(part, beam)
    assert part.feature is not None or part.axes
    last = part.feature if part.feature is not None else part.axes[-1]
    return part.to_axes([*other, last]).expand(*[a.size for a in other], size).reshape(-1, size)


@register_layer("rnn_cell", refs=("initial_state",))
def rnn_cell(
    call: LayerCall,
    *,
    unit: str,
    unit_opts: Mapping[str, Any] | None = None,
    initial_state: Any = None,
    weights_init: Any = "glorot_uniform",
    forward_weights_init: Any = None,
) -> NamedTensor:
    """One step of a recurrent unit, in a loop."""
    init = forward_weights_init if forward_weights_init is not None else weights_init
    return unit_step(call, call.x, unit, unit_opts, call.need_n_out(), initial_state, init)


@register_layer("get_last_hidden_state", concat=False)
def get_last_hidden_state(call: LayerCall, *, combine: str = "concat", key: Any = "*") -> NamedTensor:
    """The state behind the last frame: "c", "h", or all parts joined."""
    found = [_state_of(call, source, key) for source in call.sources]
    if combine == "concat":
        return call.concat(found)
    if combine != "add":
        raise call.error(f"combine = {combine!r} is not supported; nearest: 'concat', 'add'")
    total = found[0]
    for other in found[1:]:
        a, b = unify([total, other], call.scope.all_hidden)
        total = a.like(a.raw + b.to_axes(a.axes))
    return total


def _state_of(call: LayerCall, source: NamedTensor, key: Any) -> NamedTensor:
    if not source.state:
        raise call.error("the source has no hidden state")
    if key in (None, "*"):
        parts = [value for _, value in source.state.items()]
        return call.concat(parts) if len(parts) > 1 else parts[0]
    if isinstance(key, int):
        return [value for _, value in source.state.items()][key]
    if key not in source.state:
        raise call.error(f"key = {key!r}: the source's state has {[k for k, _ in source.state.items()]}")
    return source.state[key]


@register_layer("rec_last_output")
def rec_last_output(call: LayerCall, *, rec_layer: str, sub_layer_name: str) -> NamedTensor:
    """The last frame of a layer inside of a loop."""
    value = call.layer(f"{rec_layer}/{sub_layer_name}")
    time = call.time(value)
    if time.lengths is None:
        return value.select(time, time.size - 1)
    last = NamedTensor((time.lengths - 1).clamp(min=0).to(value.raw.device), time.over)
    return pick(call, value, last, time, True)
