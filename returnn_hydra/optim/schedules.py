"""Learning rates by step: any callable `(step, epoch, epoch_continuous, learning_rate) -> rate`.

`step` counts the updates done so far (0 at the first one), `epoch` from 1, `epoch_continuous` is the finished epochs
and the finished fraction of the running one; `learning_rate` is the rate that the epoch's rule gives. A schedule is a
pure function of these, so that a resumed run goes on with the same rates.
"""

from __future__ import annotations

import difflib
import math
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch.optim import lr_scheduler


class Schedule(Protocol):
    """Anything that gives the rate of a step."""

    def __call__(self, step: int, epoch: int, epoch_continuous: float, learning_rate: float) -> float: ...


def position(unit: str, step: int, epoch: int, epoch_continuous: float) -> float:
    """How far the training is, in `unit`: step, epoch (whole, counted from 0) or epoch_continuous."""
    values = {"step": step, "epoch": epoch - 1, "epoch_continuous": epoch_continuous}
    return values[unit]


def check_unit(unit: str, allowed: tuple[str, ...] = ("step", "epoch", "epoch_continuous")) -> str:
    if unit not in allowed:
        raise ValueError(f"unit={unit!r}: expected one of {', '.join(allowed)}")
    return unit


class TorchSchedule:
    """A scheduler of torch.optim.lr_scheduler, e.g. `TorchSchedule(scheduler="CosineAnnealingLR", T_max=10_000)`.

    Its base rate is the epoch's learning rate. The scheduler steps forward with the training; a jump back, or another
    base rate, replays it from the start.

    Args:
        scheduler: the class name in torch.optim.lr_scheduler.
        unit: `step` or `epoch`: what one step of the scheduler is.
        options: the scheduler's own.

    Raises:
        ValueError: no such scheduler, or it needs scores (then use ReduceOnPlateau).
        TypeError: wrong options.
    """

    def __init__(self, *, scheduler: str, unit: str = "step", **options: Any) -> None:
        self.scheduler_class = scheduler_class(scheduler)
        self.unit = check_unit(unit, ("step", "epoch"))
        self.options = options
        self._start(1.0)

    def _start(self, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self._optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=learning_rate, momentum=0.9)
        self._scheduler = self.scheduler_class(self._optimizer, **self.options)
        self._done = 0

    def __call__(self, step: int, epoch: int, epoch_continuous: float, learning_rate: float) -> float:
        target = int(position(self.unit, step, epoch, epoch_continuous))
        if target < self._done or learning_rate != self._learning_rate:
            self._start(learning_rate)
        if self._done < target:
            self._optimizer.step()  # no gradients: changes nothing; torch warns without it
        while self._done < target:
            self._scheduler.step()
            self._done += 1
        return float(self._optimizer.param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        """Where the scheduler stands, as numbers; only saves the replay."""
        return {
            "learning_rate": self._learning_rate,
            "done": self._done,
            "group": {name: value for name, value in self._optimizer.param_groups[0].items() if name != "params"},
            "scheduler": {name: value for name, value in self._scheduler.state_dict().items() if _is_plain(value)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._start(state["learning_rate"])
        self._optimizer.param_groups[0].update(state["group"])
        self._scheduler.load_state_dict(dict(state["scheduler"]))
        self._done = state["done"]


def scheduler_class(name: str) -> type[lr_scheduler.LRScheduler]:
    """The scheduler with this name, whatever its case."""
    classes = {
        key.lower(): value
        for key, value in vars(lr_scheduler).items()
        if isinstance(value, type) and issubclass(value, lr_scheduler.LRScheduler) and not key.startswith("_")
    }
    unusable = ("lrscheduler", "reducelronplateau", "sequentiallr", "chainedscheduler", "lambdalr", "multiplicativelr")
    for key in unusable:
        classes.pop(key, None)
    if name.lower() not in classes:
        names = sorted(value.__name__ for value in classes.values())
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"scheduler={name!r}: no scheduler by step of torch{hint} (there is: {', '.join(names)})")
    return classes[name.lower()]


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(entry) for entry in value)
    if isinstance(value, dict):
        return all(_is_plain(entry) for entry in value.values())
    return value is None or isinstance(value, bool | int | float | str)


class InverseSqrt:
    """Linear warm-up to the learning rate in `warmup_steps`, then rate * sqrt(warmup_steps / step).

    The shape of "Attention Is All You Need" (Vaswani et al. 2017, eq. 3), with the peak at the learning rate.
    """

    def __init__(self, *, warmup_steps: int) -> None:
        if warmup_steps < 1:
            raise ValueError(f"warmup_steps={warmup_steps}: expected at least 1")
        self.warmup_steps = warmup_steps

    def __call__(self, step: int, epoch: int, epoch_continuous: float, learning_rate: float) -> float:
        update = step + 1
        return learning_rate * min(update / self.warmup_steps, math.sqrt(self.warmup_steps / update))


class Warmup:
    """Linear warm-up from `start_factor` times the rate to the rate, then another schedule, whose step 0 is at its end.

    Args:
        num_steps: updates of the warm-up.
        start_factor: of the first update.
        then: by step; default: the rate stays.
    """

    def __init__(self, *, num_steps: int, start_factor: float = 0.0, then: Schedule | None = None) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps}: expected at least 1")
        self.num_steps = num_steps
        self.start_factor = start_factor
        self.then = then

    def __call__(self, step: int, epoch: int, epoch_continuous: float, learning_rate: float) -> float:
        if step < self.num_steps:
            return learning_rate * (self.start_factor + (1.0 - self.start_factor) * step / self.num_steps)
        if self.then is None:
            return learning_rate
        return self.then(step - self.num_steps, epoch, epoch_continuous, learning_rate)


class PiecewiseLinear:
    """Straight lines through given points, constant before the first and after the last.

    Args:
        points: `{position: value}`, e.g. `{0: 0.1, 50: 1.0, 100: 0.0}`.
        unit: of the positions: `step`, `epoch` or `epoch_continuous`.
        relative: values are factors of the learning rate; false: they are rates.
    """

    def __init__(self, *, points: Mapping[float, float], unit: str = "epoch_continuous", relative: bool = True) -> None:
        if not points:
            raise ValueError("points: expected at least one {position: value}")
        self.positions = sorted(float(key) for key in points)
        values = {float(key): float(value) for key, value in points.items()}
        self.values = [values[key] for key in self.positions]
        self.unit = check_unit(unit)
        self.relative = relative

    def __call__(self, step: int, epoch: int, epoch_continuous: float, learning_rate: float) -> float:
        value = self._at(position(self.unit, step, epoch, epoch_continuous))
        return value * learning_rate if self.relative else value

    def _at(self, here: float) -> float:
        right = bisect_right(self.positions, here)
        if right == 0:
            return self.values[0]
        if right == len(self.positions):
            return self.values[-1]
        start, end = self.positions[right - 1], self.positions[right]
        fraction = (here - start) / (end - start)
        return self.values[right - 1] * (1.0 - fraction) + self.values[right] * fraction
