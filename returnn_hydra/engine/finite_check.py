"""Whether losses and gradients were finite, looked at some updates later: no wait for a GPU at every update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from returnn_hydra.batch import Loss


@dataclass(frozen=True)
class UncheckedUpdate:
    """What is needed to report an update, all on the device."""

    number: int
    """Of the update, counted from 1."""
    finite_if: Tensor
    """Scalar: bad if one of the numbers is."""
    gradient_norm: Tensor
    norms: Mapping[str, Tensor]
    """Parameter name to the norm of its gradient, a scalar."""
    losses: Mapping[str, Loss]
    seq_tags: Sequence[str]

    def bad_parameters(self) -> list[str]:
        """Those whose gradients are not finite."""
        return [name for name, norm in self.norms.items() if not bool(torch.isfinite(norm))]


class DeferredCheck:
    """The updates since the last look."""

    def __init__(self) -> None:
        self._updates: list[UncheckedUpdate] = []

    def add(self, update: UncheckedUpdate) -> None:
        self._updates.append(update)

    def first_bad(self) -> UncheckedUpdate | None:
        """The first update with bad numbers, with one wait for the device; afterwards all count as looked at."""
        updates, self._updates = self._updates, []
        if not updates:
            return None
        finite = torch.isfinite(torch.stack([update.finite_if for update in updates])).tolist()
        return next((update for update, is_finite in zip(updates, finite, strict=True) if not is_finite), None)
