"""torch tensors with the few methods of TensorFlow's that configs use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Dimension(int):
    """A size; `.value` is the same number."""

    @property
    def value(self) -> int:
        return int(self)


class TfShape(tuple[Dimension, ...]):
    """A shape, all sizes known."""

    def as_list(self) -> list[int]:
        return [int(size) for size in self]

    @property
    def ndims(self) -> int:
        return len(self)

    @property
    def rank(self) -> int:
        return len(self)

    @property
    def dims(self) -> list[Dimension]:
        return list(self)


class TfTensor(Tensor):
    """Results of torch functions on it are of this class, too. As in TensorFlow, `x += y` makes a new tensor."""

    __iadd__ = Tensor.__add__
    __isub__ = Tensor.__sub__
    __imul__ = Tensor.__mul__
    __itruediv__ = Tensor.__truediv__

    def get_shape(self) -> TfShape:
        return TfShape(Dimension(size) for size in self.size())

    def set_shape(self, shape: Any) -> None:
        """Only a hint in TensorFlow; sizes are always known here."""

    @property
    def name(self) -> str:
        return "tensor:0"


def tf_tensor(value: Tensor) -> Tensor:
    return value.as_subclass(TfTensor)


def as_tensor(value: Any, like: Any = None, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers, lists of (scalar tensors and) numbers, and tensors as one tensor, beside `like`."""
    device = like.device if isinstance(like, Tensor) else None
    if isinstance(value, Tensor):
        value = value if dtype is None else value.to(dtype)
        return value if device is None or value.dim() == 0 else value.to(device)
    if isinstance(value, (list, tuple)) and any(isinstance(part, Tensor) for part in value):
        return tf_tensor(torch.stack([as_tensor(part, like, dtype) for part in value]))
    if dtype is None and isinstance(value, float):
        dtype = like.dtype if isinstance(like, Tensor) and like.is_floating_point() else torch.float32
    if dtype is None and isinstance(value, int) and not isinstance(value, bool):
        dtype = like.dtype if isinstance(like, Tensor) and like.dtype != torch.bool else torch.int32
    return tf_tensor(torch.as_tensor(value, dtype=dtype, device=device))


def as_sizes(shape: Any) -> list[int]:
    """A shape of numbers and scalar tensors, or one tensor, as numbers."""
    if isinstance(shape, Tensor):
        return [int(size) for size in shape.reshape(-1)]
    if isinstance(shape, int):
        return [shape]
    return [int(size) for size in shape]
