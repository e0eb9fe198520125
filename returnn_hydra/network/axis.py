"""Axes with an identity: two tensors share an axis if they hold the same object.

Legend: B sequences. Sizes are plain ints; the lengths of the sequences stay on the CPU, masks are made where needed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

BATCH, SPATIAL, FEATURE, BEAM = "batch", "spatial", "feature", "beam"


class Axis:
    """One axis of a named tensor.

    Args:
        name: what `stag:NAME` looks for.
        size: number of entries, padding included.
        kind: batch, spatial, feature or beam.
        lengths: real entries per sequence (int64, CPU) if they differ (a dynamic axis); a dimension for each of `over`.
        over: the axes that `lengths` runs over, usually the batch.
    """

    def __init__(
        self,
        name: str,
        size: int,
        kind: str = SPATIAL,
        *,
        lengths: Tensor | None = None,
        over: Sequence[Axis] = (),
    ) -> None:
        self.name = name
        self.size = int(size)
        self.kind = kind
        self.lengths = lengths
        self.over = tuple(over)
        self.choice: Any = None  # beam axes: the search step that made it
        self._derived: dict[Hashable, Axis] = {}
        self._masks: dict[torch.device, Tensor] = {}

    def __repr__(self) -> str:
        lengths = "" if self.lengths is None else f" {self.lengths.tolist()}"
        return f"{self.name}={self.size}{lengths}"

    @property
    def is_dynamic(self) -> bool:
        return self.lengths is not None

    @property
    def is_batch_like(self) -> bool:
        return self.kind in (BATCH, BEAM)

    def mask(self, device: torch.device) -> Tensor:
        """True at real entries: (*over, size)."""
        assert self.lengths is not None
        if device not in self._masks:
            steps = torch.arange(self.size)
            self._masks[device] = (steps < self.lengths[..., None]).to(device)
        return self._masks[device]

    def derived(self, key: Hashable, make: Callable[[], Axis]) -> Axis:
        """The axis that an operation makes of this one; the same operation always gives the same axis."""
        if key not in self._derived:
            self._derived[key] = make()
        return self._derived[key]

    def with_lengths(self, key: Hashable, name: str, size: int, change: Callable[[Tensor], Tensor]) -> Axis:
        """An axis of another size whose lengths are a function of these."""

        def make() -> Axis:
            lengths = None if self.lengths is None else change(self.lengths)
            return Axis(name, size, SPATIAL, lengths=lengths, over=self.over)

        return self.derived((key, size), make)

    def copy(self, name: str | None = None) -> Axis:
        """The same sizes under another identity."""
        return Axis(name or self.name, self.size, self.kind, lengths=self.lengths, over=self.over)

    def same_sizes(self, other: Axis) -> bool:
        """Do the two have equal sizes in every sequence?"""
        if self.size != other.size or self.is_dynamic != other.is_dynamic:
            return False
        if self.lengths is None or other.lengths is None:
            return True
        return self.lengths.shape == other.lengths.shape and bool(torch.equal(self.lengths, other.lengths))


def static_axis(name: str, size: int) -> Axis:
    return Axis(name, size, SPATIAL)


def feature_axis(name: str, size: int) -> Axis:
    return Axis(name, size, FEATURE)
