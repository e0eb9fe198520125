"""The `rec` layer with a network as unit: how many frames, then the loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from returnn_hydra.network.axis import Axis
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.expressions import evaluate_expression
from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.network.net import Net
from returnn_hydra.network.rec.scope import RecScope
from returnn_hydra.network.tf_face.namespace import tf_namespace


def run_network(
    call: LayerCall,
    unit: Mapping[str, Any],
    axis: Any,
    max_seq_len: Any,
    include_eos: bool,
    cheating: Any,
    optimize: bool | None,
) -> NamedTensor:
    """Compute the network frame by frame; the result is its `output` of all frames."""
    del cheating  # read by the choice layers inside
    net = call.spec.sub(unit)
    if "output" not in net:
        raise call.error("the unit has no layer 'output'")
    source, outer = _frames(call, net, axis)
    loop = outer.copy(f"{call.name}:loop") if outer is not None else None
    if source is not None and outer is not None and loop is not None:
        source = source.relabelled(outer, loop)
    limit = 0 if loop is not None else _limit(call, max_seq_len)
    move_out = bool(call.run.user.get("optimize_move_layers_out", True)) if optimize is None else optimize
    scope = RecScope(call, net, source, loop, outer, limit, include_eos, move_out)
    call.scope.adopt(call.name, scope)
    result = scope.get("output")
    for name in scope.wanted():
        scope.get(name)
    if scope.loop is not None and scope.loop in result.axes:
        result = result.like(result.raw, time=scope.loop, before_activation=result.before_activation)
    elif scope.loop is not None:
        axes = (scope.loop, *result.axes)
        result = result.like(result.expanded(axes), axes, time=scope.loop)
    return scope.outward(result)


def _frames(call: LayerCall, net: Net, axis: Any) -> tuple[NamedTensor | None, Axis | None]:
    """Input and the axis of the frames: that of the input, else of the target, else unknown (search)."""
    if call.spec.sources:
        x = call.x
        time = call.axis(x, axis) if isinstance(axis, str) else call.finder.time(x)
        if time is not None:
            return x, time
    else:
        x = None
    trains = call.scope.is_extra and call.run.with_losses
    if call.run.search and "end" in net and not call.options.get("size_target") and not trains:
        return x, None
    key = _first_target(call, net) if trains else _target_key(call, net)
    target = call.scope.target(key)
    return x, call.time(target)


def _first_target(call: LayerCall, net: Net) -> str:
    """A search in training has as many frames as the stream that comes first by name, of those that layers of the unit
    name as target (as RETURNN has it); `size_target` says it better.
    """
    found = [_first(options.get("target")) for options in net.layers.values()]
    known = [key for key in found if isinstance(key, str) and key in call.run.data]
    return str(call.options.get("size_target") or min(known, default=call.default_target()))


def _first(target: Any) -> Any:
    return target[0] if isinstance(target, (list, tuple)) and target else target


def _target_key(call: LayerCall, net: Net) -> str:
    """The stream that has as many frames as the loop: `size_target`, the layer's target, or that of a choice."""
    if call.options.get("size_target"):
        return str(call.options["size_target"])
    if call.options.get("target"):
        return call.default_target()
    for name in net.layers:
        target = net.layers[name].get("target")
        if net.layers[name].get("class") == "choice" and target:
            return str(_first(target))
    return call.default_target()


def _limit(call: LayerCall, max_seq_len: Any) -> int:
    """Most frames of a search."""
    if max_seq_len is None:
        raise call.error("specify 'max_seq_len': the search does not know when to stop at the latest")
    if isinstance(max_seq_len, int):
        return max_seq_len

    def max_len_from(name: str) -> int:
        scope = call.scope
        ref = name
        if ref.startswith("base:") and (scope.parent is None or ref.removeprefix("base:") in scope.net):
            ref = ref.removeprefix("base:")  # old configs name layers of this network from inside of the unit
        layer = scope.get(ref)
        time = call.time(layer)
        return int(time.lengths.max()) if time.lengths is not None else time.size

    names = {"max_len_from": max_len_from, "tf": tf_namespace(), "min": min, "max": max, "int": int}
    return int(evaluate_expression(str(max_seq_len), names, f"{call.path}: max_seq_len"))
