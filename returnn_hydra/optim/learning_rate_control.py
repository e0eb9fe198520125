"""Learning rates by epoch: what the scores of the finished epochs say about the next one.

A rule is a pure function of (epoch, history); the history is a list with one `(learning rate, {score name: value})`
per finished epoch, epoch 1 first. Scores are lower-is-better. The formulas of the newbob family are RETURNN's:
they compare the scores of the two (or more) newest epochs, and multiply the newest learning rate by `decay` when there
was too little progress, by `growth` otherwise.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch

from returnn_hydra.optim.schedules import Schedule

History = Sequence[tuple[float, Mapping[str, float]]]
ScoreChoice = Callable[[Sequence[str]], str | None]


class UnknownScore(ValueError):
    """The declared score does not exist."""

    exit_code = 2


def choose_score(declared: str | ScoreChoice | None, names: Iterable[str]) -> str | None:
    """The name of the score that decides: `declared`, else the first of dev, else the first of train.

    Args:
        declared: a name (`dev/ce`), a function from the names to one of them or None, or None.
        names: what exists, in the order of the data sets and of the step's losses.

    Returns:
        None if there are no scores at all.

    Raises:
        UnknownScore: `declared` is not among the names.
    """
    names = list(names)
    if callable(declared):
        return declared(names)
    if not names:
        return None
    if declared is None:
        return next((name for name in names if name.startswith("dev/")), names[0])
    if declared not in names:
        near = difflib.get_close_matches(declared, names, n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UnknownScore(f"score={declared}: no such score{hint} (there is: {', '.join(names)})")
    return declared


class LearningRateControl:
    """The base of all rules: an optional list of explicit rates, and an optional schedule by step.

    Args:
        learning_rate: the rate of the first epoch.
        learning_rates: explicit rates, a list (entry 0 is epoch 1) or `{epoch: rate}`. They win over the rule;
            an epoch beyond the list, or in a gap of the dict, goes on from the rate of the epoch before it.
        score: name of the score that decides (`dev/ce`), or a function that picks one of the names;
            default: the first dev score, else the first train score.
        min_learning_rate: no rule goes below it. (An explicit rate may.)
        schedule: turns the epoch's rate into that of a step, see `schedules`.

    Raises:
        ValueError: a rate is negative or not finite.
    """

    def __init__(
        self,
        *,
        learning_rate: float,
        learning_rates: list[float] | dict[int, float] | None = None,
        score: str | ScoreChoice | None = None,
        min_learning_rate: float = 0.0,
        schedule: Schedule | None = None,
    ) -> None:
        self.initial_learning_rate = _rate("learning_rate", learning_rate)
        self.explicit = _explicit_rates(learning_rates)
        self.score = score
        self.min_learning_rate = _rate("min_learning_rate", min_learning_rate)
        self.schedule = schedule

    def learning_rate(self, epoch: int, history: History) -> float:
        """The rate of `epoch` (counted from 1), by the epochs before it; later entries of `history` don't matter.

        Raises:
            UnknownScore: the declared score is not among the names in `history`.
        """
        if epoch < 1:
            raise ValueError(f"epoch={epoch}: epochs are counted from 1")
        past = list(history)[: epoch - 1]
        if epoch in self.explicit:
            return self.explicit[epoch]
        current = past[-1][0] if past else self._last_explicit(epoch)
        return self.next_rate(epoch, float(current), past)

    def next_rate(self, epoch: int, current: float, past: History) -> float:
        """The rule; `current` is the rate of the epoch before."""
        raise NotImplementedError

    def step_learning_rate(self, step: int, epoch_continuous: float, learning_rate: float) -> float:
        """The rate of one update.

        Args:
            step: updates done so far.
            epoch_continuous: finished epochs, and the finished fraction of the running one.
            learning_rate: the rate of the epoch.
        """
        if self.schedule is None:
            return learning_rate
        return self.schedule(step, int(epoch_continuous) + 1, epoch_continuous, learning_rate)

    def scores_of(self, past: History) -> list[float | None]:
        """The deciding score of every epoch, None where it is missing."""
        names = dict.fromkeys(name for _, scores in past for name in scores)
        if callable(self.score):
            return [scores.get(self.score(list(scores)) or "") for _, scores in past]
        name = choose_score(self.score, names)
        return [scores.get(name) if name else None for _, scores in past]

    def state_dict(self) -> dict[str, Any]:
        """What saves the schedule time after a restart; the rates themselves follow from the history."""
        state = getattr(self.schedule, "state_dict", None)
        return {"schedule": state() if state else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        load = getattr(self.schedule, "load_state_dict", None)
        if load and state.get("schedule") is not None:
            load(state["schedule"])

    def _last_explicit(self, epoch: int) -> float:
        """Without any history: the newest listed rate before `epoch`, else the first rate."""
        listed = [listed_epoch for listed_epoch in self.explicit if listed_epoch < epoch]
        return self.explicit[max(listed)] if listed else self.initial_learning_rate


class Constant(LearningRateControl):
    """The rate stays what it was in the epoch before."""

    def next_rate(self, epoch: int, current: float, past: History) -> float:
        return current


class Newbob(LearningRateControl):
    """Decays when the score improves too little: relatively, absolutely, or on average over several epochs.

    Args:
        learning_rate, learning_rates, score, min_learning_rate, schedule: see LearningRateControl.
        decay: factor, or function from rate to rate, when the change of the score is above `threshold`.
        growth: the same, when it is not.
        threshold: -0.01 with a relative change asks for an improvement of at least one percent.
        growth_threshold: grow only when the change is below it, and keep the rate in between; default: no in between.
        change: `relative` (new - old) / |new|, `relative_to_old` (new - old) / |old|, or `absolute` new - old.
        num_epochs: changes that are averaged (fewer at the start).
        update_interval: decide in every such epoch only (epochs 1, 1 + update_interval, ...).
        min_epochs_per_rate: a rate is kept until this many epochs in a row had it (in effect from 2).
        relative_to_rate: expect progress in proportion to the rate: each change is divided by the rate that made it,
            and multiplied by `learning_rate`.
    """

    def __init__(
        self,
        *,
        learning_rate: float,
        learning_rates: list[float] | dict[int, float] | None = None,
        score: str | ScoreChoice | None = None,
        min_learning_rate: float = 0.0,
        schedule: Schedule | None = None,
        decay: float | Callable[[float], float] = 0.5,
        growth: float | Callable[[float], float] = 1.0,
        threshold: float = -0.01,
        growth_threshold: float | None = None,
        change: Literal["relative", "relative_to_old", "absolute"] = "relative",
        num_epochs: int = 1,
        update_interval: int = 1,
        min_epochs_per_rate: int = 0,
        relative_to_rate: bool = False,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            learning_rates=learning_rates,
            score=score,
            min_learning_rate=min_learning_rate,
            schedule=schedule,
        )
        if change not in CHANGES:
            raise ValueError(f"change={change!r}: expected one of {', '.join(CHANGES)}")
        self.decay = decay if callable(decay) else _rate("decay", decay)
        self.growth = growth if callable(growth) else _rate("growth", growth)
        self.threshold = threshold
        self.growth_threshold = growth_threshold
        self.change = CHANGES[change]
        self.num_epochs = _count("num_epochs", num_epochs)
        self.update_interval = _count("update_interval", update_interval)
        self.min_epochs_per_rate = min_epochs_per_rate
        self.relative_to_rate = relative_to_rate

    def next_rate(self, epoch: int, current: float, past: History) -> float:
        if self._too_early(epoch, [rate for rate, _ in past]):
            return current
        change = self._mean_change(past)
        if change > self.threshold:
            return max(_apply(self.decay, current), self.min_learning_rate)
        grows = change <= self.threshold if self.growth_threshold is None else change < self.growth_threshold
        return _apply(self.growth, current) if grows else current

    def _too_early(self, epoch: int, rates: Sequence[float]) -> bool:
        """The epoch is not one of those that decide, or the current rate is too new."""
        if self.update_interval > 1 and epoch % self.update_interval != 1:
            return True
        newest = rates[-self.min_epochs_per_rate :]
        return self.min_epochs_per_rate > 1 and (len(newest) < self.min_epochs_per_rate or len(set(newest)) > 1)

    def _mean_change(self, past: History) -> float:
        """Over the newest epochs; NaN if one of them has no score, or there are fewer than two."""
        scores = [math.nan if score is None else score for score in self.scores_of(past)[-(self.num_epochs + 1) :]]
        changes = [self.change(old, new) for old, new in pairwise(scores)]
        if self.relative_to_rate:
            rates = [rate for rate, _ in past][-len(changes) :] if changes else []
            changes = [
                change * self.initial_learning_rate / rate if rate else math.nan
                for change, rate in zip(changes, rates, strict=True)
            ]
        return sum(changes) / len(changes) if changes else math.nan


class ReduceOnPlateau(LearningRateControl):
    """torch's ReduceLROnPlateau, replayed over the history.

    Args:
        learning_rate, learning_rates, score, min_learning_rate, schedule: see LearningRateControl.
        factor, patience, threshold, threshold_mode, cooldown: as in torch.
    """

    def __init__(
        self,
        *,
        learning_rate: float,
        learning_rates: list[float] | dict[int, float] | None = None,
        score: str | ScoreChoice | None = None,
        min_learning_rate: float = 0.0,
        schedule: Schedule | None = None,
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            learning_rates=learning_rates,
            score=score,
            min_learning_rate=min_learning_rate,
            schedule=schedule,
        )
        self.options: dict[str, Any] = {
            "factor": factor,
            "patience": patience,
            "threshold": threshold,
            "threshold_mode": threshold_mode,
            "cooldown": cooldown,
        }
        self._replay([])  # torch checks the options

    def next_rate(self, epoch: int, current: float, past: History) -> float:
        return self._replay(past)

    def _replay(self, past: History) -> float:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=self.initial_learning_rate)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=self.min_learning_rate, **self.options)
        for (rate, _), score in zip(past, self.scores_of(past), strict=True):
            optimizer.param_groups[0]["lr"] = rate
            if score is not None:
                plateau.step(score)
        return float(optimizer.param_groups[0]["lr"])


def _ratio(difference: float, reference: float) -> float:
    """`difference / reference`; at reference 0 it is infinite, or 0 for no difference."""
    if reference == 0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / reference


CHANGES: dict[str, Callable[[float, float], float]] = {
    "relative": lambda old, new: _ratio(new - old, abs(new)),
    "relative_to_old": lambda old, new: _ratio(new - old, abs(old)),
    "absolute": lambda old, new: new - old,
}
"""How the score changed from one epoch to the next; below 0 is an improvement."""


def _apply(factor: float | Callable[[float], float], rate: float) -> float:
    return factor(rate) if callable(factor) else rate * factor


def _rate(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}={value!r}: expected a finite number, not below 0")
    return float(value)


def _count(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: expected an integer from 1")
    return value


def _explicit_rates(rates: Sequence[float] | Mapping[int, float] | None) -> dict[int, float]:
    """`learning_rates` as {epoch: rate}."""
    if rates is None:
        return {}
    if isinstance(rates, str) or not isinstance(rates, Sequence | Mapping):
        raise ValueError(f"learning_rates={rates!r}: expected a list of rates, or {{epoch: rate}}")
    items = rates.items() if isinstance(rates, Mapping) else enumerate(rates, start=1)
    explicit = {}
    for epoch, rate in items:
        if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 1:
            raise ValueError(f"learning_rates: {epoch!r} is no epoch; expected an integer from 1")
        explicit[epoch] = _rate(f"learning_rates[{epoch}]", rate)
    return explicit
