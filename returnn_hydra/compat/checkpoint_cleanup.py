"""RETURNN's `cleanup_old_models`: which epochs' checkpoints are kept.

The last ones, the best ones by *every* recorded score, and a pattern that gets sparser with the number of epochs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CleanupRule:
    """RETURNN's options, with its defaults."""

    keep_last_n: int = 2
    keep_best_n: int = 4
    keep: Collection[int] | None = None
    """Epochs that are kept whatever their scores; None: `default_keep_pattern` of the last epoch."""

    @classmethod
    def from_config(cls, value: Any) -> CleanupRule | None:
        """The rule for the config's `cleanup_old_models`: false (none), true (the defaults) or a dict.

        Raises:
            ValueError: any other value, an unknown option, or a negative number.
        """
        if value is None or value is False:
            return None
        if value is True:
            return cls()
        if not isinstance(value, Mapping):
            raise ValueError(f"cleanup_old_models={value!r}: expected true, false or a dict")
        unknown = set(value) - {"keep_last_n", "keep_best_n", "keep"}
        if unknown:
            raise ValueError(
                f"cleanup_old_models: unknown {', '.join(map(repr, sorted(unknown, key=str)))} "
                "(there is: keep_last_n, keep_best_n, keep)"
            )
        for name in ("keep_last_n", "keep_best_n"):
            number = value.get(name, 0)
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                raise ValueError(f"cleanup_old_models: {name}={number!r}, expected an integer from 0")
        return cls(**value)

    def kept(self, epochs: Collection[int], scores: Mapping[int, Mapping[str, float]]) -> list[int]:
        """The epochs that stay, ascending.

        Args:
            epochs: those with a checkpoint.
            scores: epoch to its scores; of equal ones the earlier epoch is better, NaN is never best.
        """
        existing = sorted(epochs)
        if not existing or max(self.keep_last_n, self.keep_best_n) >= len(existing):
            return existing
        keep = set(default_keep_pattern(existing[-1]) if self.keep is None else self.keep)
        keep.update(existing[len(existing) - self.keep_last_n :])
        for name in {name for epoch in existing for name in scores.get(epoch, {})}:
            ranked = sorted(
                (scores[epoch][name], epoch)
                for epoch in existing
                if not math.isnan(scores.get(epoch, {}).get(name, math.nan))
            )
            if len({score for score, _ in ranked}) > 1:
                keep.update(epoch for _, epoch in ranked[: self.keep_best_n])
        return [epoch for epoch in existing if epoch in keep]


def default_keep_pattern(last_epoch: int) -> set[int]:
    """The epochs that are always kept in a training that is at `last_epoch`: multiples of a number, and doublings."""
    if last_epoch <= 10:
        every, first = 4, 5
    elif last_epoch <= 50:
        every, first = 20, 5
    elif last_epoch <= 100:
        every, first = 40, 10
    else:
        every, first = 80 * _next_power_of_two(1 + last_epoch // 240), 20
    pattern = set(range(every, last_epoch + 1, every))
    while first <= last_epoch:
        pattern.add(first)
        first *= 2
    return pattern


def _next_power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()
