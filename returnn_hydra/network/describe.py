"""What a network dict consists of: a table of layers, and a picture of how they are connected."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


def draw(infos: list[LayerInfo], path: str | Path) -> None:
    """Draw the graph, sources on the left, as SVG, PNG or PDF by the file's name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = _columns(infos)
    places = {}
    for name, column in columns.items():
        row = sum(1 for other, c in columns.items() if c == column and other in places)
        places[name] = (float(column), -float(row))
    width = 2.2 * (max(columns.values()) + 1) + 1
    height = 0.8 * (max(-y for _, y in places.values()) + 1) + 1
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    plot = figure.add_subplot()
    for info in infos:
        for source in dict.fromkeys(info.sources):
            _arrow(plot, places, source, info.path)
    kinds = {info.path: info for info in infos}
    for name, (x, y) in places.items():
        layer = kinds.get(name)
        text = f"{name}\n{layer.cls} {layer.axes or ''}" if layer else name
        plot.text(x, y, text, ha="center", va="center", fontsize=7, bbox={"boxstyle": "round", "facecolor": "white"})
    plot.set_xlim(-0.6, max(columns.values()) + 0.6)
    plot.set_ylim(min(y for _, y in places.values()) - 0.6, 0.6)
    plot.axis("off")
    figure.savefig(path, bbox_inches="tight")


def _arrow(plot: Any, places: dict[str, tuple[float, float]], source: str, target: str) -> None:
    recurrent = source.startswith("prev:")
    start = places.get(source.removeprefix("prev:"))
    if start is None:
        return
    style = {"arrowstyle": "->", "color": "tab:orange" if recurrent else "0.6", "shrinkA": 18, "shrinkB": 18}
    if recurrent:
        style |= {"linestyle": "dashed", "connectionstyle": "arc3,rad=0.3"}
    plot.annotate("", xy=places[target], xytext=start, arrowprops=style)


def _columns(infos: list[LayerInfo]) -> dict[str, int]:
    """Longest way from a stream, previous frames left out."""
    by_path = {info.path: info for info in infos}
    columns: dict[str, int] = {}

    def column(name: str, active: tuple[str, ...]) -> int:
        if name in columns:
            return columns[name]
        info = by_path.get(name)
        inputs = [s for s in info.sources if not s.startswith("prev:") and s not in active] if info else []
        result = 1 + max((column(s, (*active, name)) for s in inputs), default=-1)
        columns[name] = result
        return result

    for info in infos:
        column(info.path, ())
    return columns
