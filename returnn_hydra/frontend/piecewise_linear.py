"""Functions given by points, linear between them."""

from __future__ import annotations

from typing import Any

from returnn_hydra.frontend.arrays import search_sorted, stack
from returnn_hydra.frontend.create import convert_to_tensor
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.elementwise import cast, clip_by_value, lerp, maximum
from returnn_hydra.frontend.indexing import gather
from returnn_hydra.frontend.module import Module
from returnn_hydra.frontend.parameter import Parameter
from returnn_hydra.frontend.run_ctx import get_run_ctx
from returnn_hydra.frontend.tensor import Tensor


class PiecewiseLinear(Module):
    """Through {x: y} points; constant before the first and behind the last.

    Parameters (auxiliary): _keys, _values.
    """

    def __init__(self, points: dict[float, Any]) -> None:
        super().__init__()
        if not points:
            raise ValueError("PiecewiseLinear: needs at least one point")
        keys, values = zip(*sorted(points.items()), strict=True)
        self.points_dim = Dim(len(keys), name="points")
        self._keys = _fixed(convert_to_tensor([float(key) for key in keys], dims=[self.points_dim], dtype="float32"))
        self._values = _fixed(stack([convert_to_tensor(value) for value in values], out_dim=self.points_dim)[0])

    def __call__(self, x: Any) -> Tensor:
        x = cast(convert_to_tensor(x, device=self._keys.device), self._keys.dtype)
        x.sparse_dim = None
        last = self.points_dim.get_dim_value() - 1
        right = clip_by_value(search_sorted(self._keys, x, axis=self.points_dim), min(1, last), last)
        left = maximum(right - 1, 0)
        start, end = gather(self._keys, indices=left), gather(self._keys, indices=right)
        weight = clip_by_value((x - start) / maximum(end - start, _SMALLEST_STEP), 0.0, 1.0)
        return lerp(gather(self._values, indices=left), gather(self._values, indices=right), weight)


_SMALLEST_STEP = 1e-30


def _fixed(values: Tensor) -> Parameter:
    """In the checkpoint, but not trained."""
    return Parameter(values.dims, values.dtype, auxiliary=True, initial=values)


class PiecewiseLinearStepwiseScheduler(Module):
    """PiecewiseLinear of the global training step.

    Parameters (auxiliary): func._keys, func._values.
    """

    def __init__(self, points: dict[float, Any]) -> None:
        super().__init__()
        self.func = PiecewiseLinear(points)

    def __call__(self) -> Any:
        return self.func(get_run_ctx().step)
