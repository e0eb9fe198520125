"""Which layers of a loop have to be computed frame by frame, and which can be computed for all frames at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from returnn_hydra.network.net import LayerSpec, Net
from returnn_hydra.network.registry import layer_class

STATEFUL = frozenset(
    (
        "rnn_cell",
        "self_attention",
        "cumsum",
        "kenlm",
        "masked_computation",
        "window",
        "edit_distance_table",
        "cum_concat",
    )
)
"""Classes that keep something from frame to frame."""


@dataclass(frozen=True)
class Plan:
    """How a loop is computed.

    Attributes:
        loop: layers that are computed frame by frame.
        kept: those of them whose values of all frames are needed behind the loop.
        previous: those whose previous frame is needed in the loop.
    """

    loop: frozenset[str]
    kept: frozenset[str]
    previous: frozenset[str]


def references_of(spec: LayerSpec, searching: bool) -> list[str]:
    """What a layer reads; `choice` reads its scores only where there is a search, else the target."""
    found = spec.references()
    if spec.known.name != "choice":
        return [ref for ref in found if not _only_target(spec, ref)]
    if in_search(spec, searching) or spec.options.get("scheduled_sampling"):
        options = spec.options
        keep = options.get("search") is False or options.get("cheating") or options.get("scheduled_sampling")
        return [*(ref for ref in found if keep or not _only_target(spec, ref)), f"prev:{spec.name}"]
    return [ref for ref in found if _only_target(spec, ref) or ref in layer_targets(spec.options)]


def in_search(spec: LayerSpec, searching: bool) -> bool:
    """Is it a `choice` that searches, or that takes part in a search with its target (`search` = False)?"""
    return spec.known.name == "choice" and (searching or bool(spec.options.get("search")))


def layer_targets(options: Mapping[str, Any]) -> list[str]:
    """The layers among the targets (`layer:NAME`)."""
    target = options.get("target")
    targets = target if isinstance(target, (list, tuple)) else [target]
    return [t.removeprefix("layer:") for t in targets if isinstance(t, str) and t.startswith("layer:")]


def _only_target(spec: LayerSpec, ref: str) -> bool:
    target = spec.options.get("target")
    targets = target if isinstance(target, (list, tuple)) else [target]
    return ref in [f"data:{t}" for t in targets] and ref not in spec.sources


def is_framewise(spec: LayerSpec) -> bool:
    """May the layer be computed for all frames at once, the frames being part of the batch?"""
    if spec.known.name == "subnetwork":
        return _all_framewise(spec.options.get("subnetwork") or {}, spec.path)
    return spec.known.framewise


def _all_framewise(layers: Mapping[str, Any], where: str) -> bool:
    for name, options in layers.items():
        known = layer_class(options.get("class"), f"{where}/{name}")
        if known.name == "subnetwork":
            if not _all_framewise(options.get("subnetwork") or {}, f"{where}/{name}"):
                return False
        elif not known.framewise:
            return False
    return True


def make_plan(
    net: Net, roots: Iterable[str], varying: frozenset[str], searching: bool, known_length: bool, move_out: bool
) -> Plan:
    """Split the layers that `roots` need.

    Args:
        varying: streams (`data:...`) that differ from frame to frame.
        searching: `choice` layers search.
        known_length: the number of frames is known before the loop.
        move_out: False: everything in the loop (the same result, slower).
    """
    edges, previous = _edges(net, roots, searching)
    names = list(edges)
    reach = {name: _reachable(name, edges) for name in names}
    varies = {name for name in names if _varies(net.spec(name), reach[name] | {name}, net, varying, searching)}
    if not move_out:
        loop = set(names)
    else:
        loop = {name for name in names if name in reach[name] or (name == "end" and not known_length)}
        loop |= {name for name in varies if not _movable(net.spec(name), varies, edges, known_length)}
        loop |= {name for name in names if in_search(net.spec(name), searching)}
        loop |= {n for n in names if reach[n] & loop and any(n in reach[other] for other in loop)}
    outside = [name for name in names if name not in loop]
    needed = {dep for name in outside for dep in edges[name]} | set(roots)
    return Plan(frozenset(loop), frozenset(needed & loop), frozenset(previous & loop))


def _edges(net: Net, roots: Iterable[str], searching: bool) -> tuple[dict[str, set[str]], set[str]]:
    """Layer to the layers that it reads, in this or the previous frame, and all that are read from the previous one."""
    edges: dict[str, set[str]] = {}
    previous: set[str] = set()
    todo = [root for root in roots if root in net]
    while todo:
        name = todo.pop()
        if name in edges:
            continue
        edges[name] = set()
        for ref in references_of(net.spec(name), searching):
            local = ref
            if ref == "prev:?":
                edges[name].add(name)
                continue
            if local.startswith("prev:"):
                local = local.removeprefix("prev:")
                base = local if local in net else local.partition("/")[0]
                if base in net:
                    previous.add(base)
            local = local if local in net else local.partition("/")[0]
            if local in net:
                edges[name].add(local)
                todo.append(local)
    return edges, previous


def _reachable(name: str, edges: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = list(edges[name])
    while todo:
        other = todo.pop()
        if other not in seen:
            seen.add(other)
            todo += edges[other]
    return seen


def _varies(spec: LayerSpec, reach: set[str], net: Net, varying: frozenset[str], searching: bool) -> bool:
    for name in reach:
        other = net.spec(name)
        if other.known.name in STATEFUL or (other.known.name == "rec" and isinstance(other.options.get("unit"), str)):
            return True
        refs = [*references_of(other, searching), *_target_refs(other, searching)]
        if any(ref == ":i" or ref.startswith("prev:") or _stream(ref) in varying for ref in refs):
            return True
    return False


def _target_refs(spec: LayerSpec, searching: bool) -> list[str]:
    """The target of a `choice` that does not search is its value."""
    if spec.known.name != "choice" or in_search(spec, searching):
        return []
    return [ref for ref in spec.references() if _only_target(spec, ref)]


def _stream(ref: str) -> str:
    return "data:data" if ref == "data" else ref


def _movable(spec: LayerSpec, varies: set[str], edges: dict[str, set[str]], known_length: bool) -> bool:
    if spec.known.name == "choice":
        return True
    if is_framewise(spec):
        return True
    if not spec.known.sequential or (spec.known.name == "rec" and not isinstance(spec.options.get("unit"), str)):
        return False
    reads_frames = edges[spec.name] & varies or any(str(s).startswith(("data", ":i")) for s in spec.sources)
    return known_length and bool(reads_frames)
