"""Sums and counts of losses over many batches, and their means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from returnn_hydra.batch import Loss


@dataclass(frozen=True)
class Score:
    """A lower-is-better number of a data set: a sum over `count` frames (or labels, sequences)."""

    sum: float
    count: float

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else float("nan")


class ScoreSums:
    """Adds up the losses of an epoch.

    The numbers stay on the device until someone asks, so that adding a batch waits for nothing.
    They are added in double precision in the order of the batches: reading in between changes nothing.
    """

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}
        self._pending: list[tuple[str, torch.Tensor, torch.Tensor | float]] = []

    def add(self, losses: Mapping[str, Loss]) -> None:
        for name, loss in losses.items():
            count = loss.count.detach() if isinstance(loss.count, torch.Tensor) else float(loss.count)
            self._pending.append((name, loss.sum.detach(), count))

    def read(self) -> None:
        """Take what was added off the device."""
        for name, value, count in self._pending:
            entry = self._sums.setdefault(name, [0.0, 0.0])
            entry[0] += float(value)
            entry[1] += float(count)
        self._pending.clear()

    def scores(self) -> dict[str, Score]:
        """What has been added so far, by loss name."""
        self.read()
        return {name: Score(total, count) for name, (total, count) in self._sums.items()}

    def state_dict(self) -> dict[str, list[float]]:
        return {name: [score.sum, score.count] for name, score in self.scores().items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        self._pending.clear()
        self._sums = {name: list(entry) for name, entry in state.items()}


def format_scores(scores: Mapping[str, Score]) -> str:
    """`ce 0.356 error 0.147`; for one score only the number, for none that there was nothing to score."""
    if not scores:
        return "(no sequences)"
    if len(scores) == 1:
        return format_number(next(iter(scores.values())).mean)
    return " ".join(f"{name} {format_number(score.mean)}" for name, score in scores.items())


def format_number(value: float) -> str:
    """Three digits after the point, or in exponent form when that would hide the value."""
    small = value != 0 and abs(value) < 1e-3
    return f"{value:.3e}" if small or abs(value) > 1e3 else f"{value:.3f}"
