"""Functions given by points, linear between them."""

from __future__ import annotations

from typing import Any

from returnn_hydra.frontend.elementwise import where
from returnn_hydra.frontend.module import Module
from returnn_hydra.frontend.run_ctx import get_run_ctx
from returnn_hydra.frontend.tensor import Tensor


class PiecewiseLinear(Module):
    """Through {x: y} points; constant before the first and behind the last."""

    def __init__(self, points: dict[float, Any]) -> None:
        super().__init__()
        if not points:
            raise ValueError("PiecewiseLinear: needs at least one point")
        self._points = sorted(points.items())

    def __call__(self, x: Any) -> Any:
        result = self._points[0][1]
        for (x0, y0), (x1, y1) in zip(self._points, self._points[1:], strict=False):
            slope = (y1 - y0) / (x1 - x0)
            if isinstance(x, Tensor):
                result = where(x >= x0, (x - x0) * slope + y0, result)
            elif x >= x0:
                result = y0 + (x - x0) * slope
        last_x, last_y = self._points[-1]
        if isinstance(x, Tensor):
            return where(x >= last_x, last_y, result)
        return last_y if x >= last_x else result


class PiecewiseLinearStepwiseScheduler(Module):
    """PiecewiseLinear of the global training step."""

    def __init__(self, points: dict[float, Any]) -> None:
        super().__init__()
        self.func = PiecewiseLinear(points)

    def __call__(self) -> Any:
        return self.func(get_run_ctx().step)
