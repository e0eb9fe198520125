"""returnn.util.math"""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["PiecewiseLinear", "ceil_div", "next_power_of_two"]


class PiecewiseLinear:
    """A function through {x: y} points, linear between them, constant outside."""

    def __init__(
        self, values: Mapping[float, float], *, kw_name: str | None = None, ignore_other_kwargs: bool = False
    ) -> None:
        self._points = sorted(values.items())
        self._kw_name = kw_name
        self._ignore_other_kwargs = ignore_other_kwargs
        if not self._points:
            raise ValueError("PiecewiseLinear: needs at least one point")

    def __repr__(self) -> str:
        return f"PiecewiseLinear({dict(self._points)})"

    def __call__(self, *args: float, **kwargs: float) -> float:
        """The value at the one positional argument, or at the keyword `kw_name`."""
        if self._kw_name is not None and self._kw_name in kwargs:
            args = (*args, kwargs.pop(self._kw_name))
        if kwargs and not self._ignore_other_kwargs:
            raise TypeError(f"PiecewiseLinear: unexpected arguments {sorted(kwargs)}")
        (x,) = args
        if x <= self._points[0][0]:
            return self._points[0][1]
        for (x0, y0), (x1, y1) in zip(self._points, self._points[1:], strict=False):
            if x <= x1:
                return y0 + (x - x0) / (x1 - x0) * (y1 - y0)
        return self._points[-1][1]


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << math.ceil(math.log2(max(n, 1)))
