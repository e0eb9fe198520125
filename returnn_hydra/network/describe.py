"""What a network dict consists of: a table of layers, and a picture of how they are connected."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from returnn_hydra.extras import require
from returnn_hydra.network.axis import Axis
from returnn_hydra.network.model import NetworkModel
from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.network.net import Net


@dataclass
class LayerInfo:
    """One layer.

    Attributes:
        path: name, with the networks around it.
        cls: its class.
        sources: paths of the layers that it reads; `prev:` marks the frame before.
        axes: of its output, None where it was only computed inside of a loop.
        parameters: name and shape.
        depth: networks around it.
    """

    path: str
    cls: str
    sources: list[str]
    axes: str | None
    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    depth: int = 0

    @property
    def num_parameters(self) -> int:
        total = 0
        for shape in self.parameters.values():
            count = 1
            for size in shape:
                count *= size
            total += count
        return total


def layer_infos(model: NetworkModel) -> list[LayerInfo]:
    """All layers that were computed when the network was built, inner ones behind the one that holds them."""
    outputs = model.example_pass().outputs
    return _of_net(model, model.net, outputs, 0, "")


def _of_net(
    model: NetworkModel, net: Net, outputs: dict[str, NamedTensor], depth: int, param_prefix: str
) -> list[LayerInfo]:
    found = []
    for name, spec in net._specs.items():
        path = f"{param_prefix}{name}"
        names = {
            full.removeprefix(f"{path}/"): tuple(value.shape)
            for full, value in model.tf_parameters().items()
            if full.startswith(f"{path}/")
        }
        value = outputs.get(spec.path)
        sources = [_source_path(net, ref) for ref in spec.references() if isinstance(ref, str)]
        sources = [source for source in sources if source]
        inner = spec._sub
        own = names if inner is None else {}
        found.append(LayerInfo(spec.path, spec.known.name, sources, _axes_text(value), own, depth))
        if inner is not None:
            below = f"{path}/rec/" if spec.known.name == "rec" else f"{path}/"
            found += _of_net(model, inner, outputs, depth + 1, below)
    return found


def _source_path(net: Net, ref: str) -> str:
    mark = ""
    if ref.startswith("prev:"):
        mark, ref = "prev:", ref.removeprefix("prev:")
    while ref.startswith("base:") and net.parent is not None:
        ref, net = ref.removeprefix("base:"), net.parent
    if ref == "data" or ref.startswith("data:"):
        return f"data:{ref.removeprefix('data').removeprefix(':') or 'data'}"
    name = ref if ref in net else ref.partition("/")[0]
    return f"{mark}{net.path}{name}" if name in net else ""


def _axes_text(value: NamedTensor | None) -> str | None:
    if value is None:
        return None
    value = value.batch_major()
    kind = f" of {value.sparse_dim} classes" if value.sparse_dim is not None else ""
    return "[" + ", ".join(_axis_text(axis, value) for axis in value.axes) + "]" + kind


def _axis_text(axis: Axis, value: NamedTensor) -> str:
    if axis.is_batch_like:
        return "B" if axis.kind == "batch" else "beam"
    if axis.is_dynamic:
        return f"T:{axis.name.rsplit(':', 1)[-1]}"
    return f"F:{axis.size}" if axis is value.feature else str(axis.size)


def as_text(infos: list[LayerInfo]) -> str:
    """A table: layer, class, output axes, parameters, sources."""
    rows = [("layer", "class", "output", "parameters", "from")]
    for info in infos:
        shapes = ", ".join(f"{name}{list(shape)}" for name, shape in info.parameters.items())
        name = "  " * info.depth + info.path.rsplit("/", 1)[-1]
        rows.append((name, info.cls, info.axes or "(per frame)", shapes, ", ".join(dict.fromkeys(info.sources))))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]).rstrip() for row in rows
    ]
    total = sum(info.num_parameters for info in infos)
    return "\n".join([*lines, f"{len(infos)} layers, {total} parameters"])


COLOURS = ("white", "#e8f0fa", "#fdf0e0", "#e9f7e9")
"""Of layers in the outer network, and in networks inside of it."""
ROW, COLUMN = 0.75, 2.4
"""Inches."""
HALF_BOX = 0.27
"""Half of a box's height, in rows."""


def draw(infos: list[LayerInfo], path: str | Path) -> None:
    """Draw the graph, sources on top, as SVG, PNG or PDF by the file's name; previous frames as dashed arrows."""
    require("matplotlib", "plot", f"drawing {path}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    places = _places(infos)
    xs, ys = [x for x, _ in places.values()], [y for _, y in places.values()]
    figure = Figure(figsize=(COLUMN * (max(xs) - min(xs) + 1.2), ROW * (max(ys) - min(ys) + 1.5)))
    FigureCanvasAgg(figure)
    plot = figure.add_subplot()
    for info in infos:
        for source in dict.fromkeys(info.sources):
            _arrow(plot, places, source, info.path)
    layers = {info.path: info for info in infos}
    for name, (x, y) in places.items():
        layer = layers.get(name)
        text = f"{name}\n{layer.cls} {layer.axes or ''}" if layer else name
        colour = COLOURS[min(layer.depth, len(COLOURS) - 1)] if layer else "#eeeeee"
        box = {"boxstyle": "round", "facecolor": colour, "edgecolor": "0.3"}
        plot.text(x, y, text, ha="center", va="center", fontsize=7, bbox=box)
    plot.set_xlim(min(xs) - 0.6, max(xs) + 0.6)
    plot.set_ylim(max(ys) + 0.7, min(ys) - 0.7)
    plot.axis("off")
    figure.savefig(path, bbox_inches="tight", dpi=110)


def _places(infos: list[LayerInfo]) -> dict[str, tuple[float, float]]:
    """(column, row) of every layer and stream: rows by the longest way, centred, in the order of their sources."""
    ranks = _ranks(infos)
    sources = {info.path: [s for s in info.sources if not s.startswith("prev:")] for info in infos}
    places: dict[str, tuple[float, float]] = {}
    for rank in range(max(ranks.values()) + 1):
        row = [name for name in ranks if ranks[name] == rank]

        def mean_of_sources(name: str) -> float:
            known = [places[source][0] for source in sources.get(name, []) if source in places]
            return sum(known) / len(known) if known else 0.0

        row.sort(key=mean_of_sources)
        for number, name in enumerate(row):
            places[name] = (number - (len(row) - 1) / 2, float(rank))
    return places


def _arrow(plot: Any, places: dict[str, tuple[float, float]], source: str, target: str) -> None:
    recurrent = source.startswith("prev:")
    start, end = places.get(source.removeprefix("prev:")), places[target]
    if start is None or start == end:
        return
    down = HALF_BOX if start[1] < end[1] else -HALF_BOX
    start, end = (start[0], start[1] + down), (end[0], end[1] - down)  # from edge to edge: no box hides an arrow's head
    style: dict[str, Any] = {"arrowstyle": "->", "color": "0.55", "shrinkA": 0, "shrinkB": 0}
    if recurrent:
        style |= {"color": "tab:orange", "linestyle": "dashed", "connectionstyle": "arc3,rad=0.3"}
    elif end[1] - start[1] > 1 and abs(end[0] - start[0]) < 0.6:  # around the layers between them
        style["connectionstyle"] = f"arc3,rad={min(0.6, 1.2 / (end[1] - start[1]) + 0.15):.2f}"
    plot.annotate("", xy=end, xytext=start, arrowprops=style)


def _ranks(infos: list[LayerInfo]) -> dict[str, int]:
    """Longest way from a stream, previous frames left out."""
    by_path = {info.path: info for info in infos}
    ranks: dict[str, int] = {}

    def rank_of(name: str, active: tuple[str, ...]) -> int:
        if name in ranks:
            return ranks[name]
        info = by_path.get(name)
        inputs = [s for s in info.sources if not s.startswith("prev:") and s not in active] if info else []
        result = 1 + max((rank_of(s, (*active, name)) for s in inputs), default=-1)
        ranks[name] = result
        return result

    for info in infos:
        rank_of(info.path, ())
    return ranks
