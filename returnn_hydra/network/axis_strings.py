"""Axis strings: `T`, `F`, `spatial`, `stag:NAME`, `except_time`, ... to the axes of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from returnn_hydra.network.axis import Axis
from returnn_hydra.network.errors import NetworkError
from returnn_hydra.network.named_tensor import NamedTensor

FORMS = (
    "B, T, F, spatial, dyn, static, spatial:i, static:i, dyn:i, dim:N, stag:NAME, stag-single:i:NAME, "
    "except_time, except_batch, BT, *"
)
_ALIASES = {"batch": "b", "time": "t", "feature": "f", "dynamic": "dyn", "s": "spatial", "d": "dyn"}

AxisSpec = str | int | Axis | Sequence[object] | None


class AxisFinder:
    """Resolves axis strings for one layer; axes of loops and beams are never found.

    Args:
        where: the layer, for messages.
        hidden: axes that count as batch here.
    """

    def __init__(self, where: str, hidden: frozenset[Axis] = frozenset()) -> None:
        self.where = where
        self.hidden = hidden

    def one(self, tensor: NamedTensor, spec: object) -> Axis:
        """Exactly one axis.

        Raises:
            NetworkError: none or several fit.
        """
        found = self.all(tensor, spec)
        if len(found) != 1:
            raise NetworkError(
                f"{self.where}: axis {spec!r} means {len(found)} axes of {list(tensor.axes)}, expected one; "
                f"forms: {FORMS}"
            )
        return found[0]

    def all(self, tensor: NamedTensor, spec: object) -> list[Axis]:
        """All axes that a string, a list of strings, or None (no axes) means."""
        if spec is None:
            return []
        if isinstance(spec, Axis):
            return [spec] if spec in tensor.axes else []
        if isinstance(spec, int) and not isinstance(spec, bool):
            return [self._by_index(tensor, spec)]
        if isinstance(spec, (list, tuple, set)):
            found: list[Axis] = []
            for part in spec:
                found += [axis for axis in self.all(tensor, part) if axis not in found]
            return found
        if hasattr(spec, "dimension") and hasattr(spec, "kind"):
            return self._of_dim(tensor, spec)
        if not isinstance(spec, str):
            raise NetworkError(f"{self.where}: axis {spec!r} is no axis string; forms: {FORMS}")
        return self._by_name(tensor, spec)

    def visible(self, tensor: NamedTensor) -> list[Axis]:
        return [axis for axis in tensor.axes if axis not in self.hidden and axis.kind != "beam"]

    def spatial(self, tensor: NamedTensor) -> list[Axis]:
        """All axes but batch and feature."""
        return [axis for axis in self.visible(tensor) if not axis.is_batch_like and axis is not tensor.feature]

    def time(self, tensor: NamedTensor) -> Axis | None:
        if tensor.time is not None and tensor.time in self.visible(tensor):
            return tensor.time
        return next((axis for axis in self.visible(tensor) if axis.is_dynamic), None)

    def _by_index(self, tensor: NamedTensor, index: int) -> Axis:
        """RETURNN counts the axes with the batch first."""
        axes = self.visible(tensor.batch_major())
        if not -len(axes) <= index < len(axes):
            raise NetworkError(f"{self.where}: axis {index} of {axes} does not exist")
        return axes[index]

    def _of_dim(self, tensor: NamedTensor, dim: Any) -> list[Axis]:
        """The axis that a `Dim` object means: the batch, else one of its size (or variable size); of several, by name.

        In a network that is right, a `Dim` is one of the tensor's; so the only one that it can be is the one.
        """
        visible = self.visible(tensor)
        if dim.is_batch_dim():
            return [axis for axis in visible if axis.kind == "batch"]
        rest = [axis for axis in visible if not axis.is_batch_like]
        fits = [axis for axis in rest if (None if axis.is_dynamic else axis.size) == dim.dimension]
        named = [axis for axis in fits if str(dim.name).lower() in axis.name.lower()]
        return named if len(fits) > 1 and len(named) == 1 else fits

    def _by_name(self, tensor: NamedTensor, spec: str) -> list[Axis]:
        name = spec.strip().lower()
        name = _ALIASES.get(name, name)
        visible = self.visible(tensor)
        time = self.time(tensor)
        if name in ("b", "t", "f"):
            wanted = {"b": next((a for a in visible if a.kind == "batch"), None), "t": time, "f": tensor.feature}[name]
            return [wanted] if wanted is not None else []
        if name == "t?":
            return [time] if time is not None else []
        if name and all(letter in "btf" for letter in name):
            return [axis for letter in name for axis in self._by_name(tensor, letter)]
        if name == "*":
            return visible
        groups = {
            "spatial": self.spatial(tensor),
            "spatial_except_time": [axis for axis in self.spatial(tensor) if axis is not time],
            "dyn": [axis for axis in visible if axis.is_dynamic],
            "static": [axis for axis in visible if not axis.is_dynamic and not axis.is_batch_like],
            "except_time": [axis for axis in self.spatial_or_feature(tensor) if axis is not time],
            "except_batch": self.spatial_or_feature(tensor),
        }
        if name in groups:
            return groups[name]
        kind, _, rest = name.partition(":")
        kind = _ALIASES.get(kind, kind)
        if kind in groups:
            return self._indexed(groups[kind], rest, spec)
        if kind == "dim":
            return [
                axis for axis in visible if not axis.is_batch_like and not axis.is_dynamic and axis.size == int(rest)
            ]
        if kind == "stag":
            return self._tagged(tensor, rest, spec)
        if kind == "stag-single":
            index, _, tag = rest.partition(":")
            matches = [axis for axis in self.spatial_or_feature(tensor) if tag in axis.name.lower()]
            return self._indexed(matches, index, spec)
        raise NetworkError(f"{self.where}: axis {spec!r} is unknown; forms: {FORMS}")

    def spatial_or_feature(self, tensor: NamedTensor) -> list[Axis]:
        return [axis for axis in self.visible(tensor) if not axis.is_batch_like]

    def _indexed(self, axes: list[Axis], index: str, spec: str) -> list[Axis]:
        try:
            return [axes[int(index)]]
        except (ValueError, IndexError):
            raise NetworkError(f"{self.where}: axis {spec!r} does not exist among {axes}") from None

    def _tagged(self, tensor: NamedTensor, tag: str, spec: str) -> list[Axis]:
        axes = self.spatial_or_feature(tensor)
        for fits in (lambda a: a.name.lower() == tag, lambda a: tag in a.name.lower()):
            matches = [axis for axis in axes if fits(axis)]
            if matches:
                break
        if len(matches) > 1:
            raise NetworkError(f"{self.where}: {spec!r} fits several axes: {matches}; give more of the name")
        return matches
