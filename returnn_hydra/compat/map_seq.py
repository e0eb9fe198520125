"""Functions of a RETURNN PostprocessingDataset (TensorDict in, TensorDict out) as functions on arrays."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from returnn_hydra.data.streaming import Example
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.tensor import Tensor
from returnn_hydra.frontend.tensor_dict import TensorDict


def to_tensor_dict(arrays: Mapping[str, Any]) -> TensorDict:
    """The arrays of one sequence as Tensors. The last of several axes has a fixed size, the others are dynamic."""
    tensors = {}
    for name, value in arrays.items():
        array = np.asarray(value)
        fixed = [None] * max(array.ndim - 1, 1) + [*array.shape[1:]][-1:]
        dims = [Dim(size, name=f"{name}:{axis}") for axis, size in enumerate(fixed[: array.ndim])]
        dtype = "string" if array.dtype.kind in "OSU" else str(array.dtype)
        tensors[name] = Tensor(name, dims=dims, dtype=dtype, raw_tensor=array)
    return TensorDict(tensors)


def to_arrays(tensors: TensorDict) -> dict[str, np.ndarray]:
    """The arrays in a TensorDict."""
    return {name: np.asarray(tensor.raw_tensor) for name, tensor in tensors.data.items()}


class MapSeq:
    """A `map_seq` of a config, for our PostprocessingDataset.

    It gets those of `epoch`, `seq_idx`, `seq_tag` and `rng` (a RandomState) that it takes.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(
        self, arrays: Mapping[str, Any], rng: np.random.Generator, epoch: int, seq_idx: int, seq_tag: str
    ) -> dict[str, np.ndarray]:
        offered = {"epoch": epoch, "seq_idx": seq_idx, "seq_tag": seq_tag, "rng": random_state(rng)}
        return to_arrays(self.function(to_tensor_dict(arrays), **accepted(self.function, offered)))


class MapStream:
    """A `map_seq_stream` of a config, for our PostprocessingStream.

    Sequences that come out without a tag of their own (`seq_tag` in the TensorDict) keep that of their place.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, examples: Iterable[Example], rng: np.random.Generator, epoch: int) -> Iterator[Example]:
        def tensor_dicts() -> Iterator[TensorDict]:
            for example in examples:
                tensors = to_tensor_dict({**example.streams, "seq_tag": np.array(example.seq_tag)})
                yield tensors

        offered = {"epoch": epoch, "rng": random_state(rng)}
        for number, tensors in enumerate(self.function(tensor_dicts(), **accepted(self.function, offered))):
            arrays = to_arrays(tensors)
            tag = arrays.pop("seq_tag", None)
            yield Example(str(tag) if tag is not None else f"seq-{number}", arrays)


def random_state(rng: np.random.Generator) -> np.random.RandomState:
    """RETURNN's kind of generator, seeded by ours."""
    return np.random.RandomState(int(rng.integers(2**32)))


def accepted(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the keywords that the function takes."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(offered)
    return {name: value for name, value in offered.items() if name in parameters}
