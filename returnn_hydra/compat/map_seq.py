"""Functions of RETURNN data sets, on a TensorDict or with a RandomState, as functions on arrays with our generators."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.compat.stream_specs import spec_of_template
from returnn_hydra.data.streaming import Example
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.extern_data import make_templates
from returnn_hydra.frontend.tensor import Tensor
from returnn_hydra.frontend.tensor_dict import TensorDict


def to_tensor_dict(arrays: Mapping[str, Any], specs: Mapping[str, TensorSpec] | None = None) -> TensorDict:
    """The arrays of one sequence as Tensors, classes with their `sparse_dim`.

    Without a spec, the last of several axes has a fixed size, the others are dynamic.
    """
    tensors = {}
    for name, value in arrays.items():
        array = np.asarray(value)
        spec = (specs or {}).get(name)
        if spec is not None and spec.shape is not None and len(spec.shape) == array.ndim:
            sizes = list(spec.shape)
        else:
            sizes = ([None] * max(array.ndim - 1, 1) + [*array.shape[1:]][-1:])[: array.ndim]
        dims = [Dim(size, name=f"{name}:{axis}") for axis, size in enumerate(sizes)]
        dtype = "string" if array.dtype.kind in "OSU" else str(array.dtype)
        sparse_dim = _classes(name, spec) if spec is not None and spec.sparse else None
        tensors[name] = Tensor(name, dims=dims, dtype=dtype, sparse_dim=sparse_dim, raw_tensor=array)
    return TensorDict(tensors)


def _classes(name: str, spec: TensorSpec) -> Dim:
    dim = Dim(spec.dim, name=f"{name}:classes")
    if spec.vocab is not None:
        dim.vocab = spec.vocab
    return dim


def to_arrays(tensors: TensorDict, names: Collection[str]) -> dict[str, np.ndarray]:
    """The arrays in a TensorDict; RETURNN ignores other streams than the declared ones, so they are left out."""
    return {
        name: np.asarray(tensor.raw_tensor) for name, tensor in tensors.data.items() if names is None or name in names
    }


def output_specs(map_outputs: Mapping[str, Any]) -> dict[str, TensorSpec]:
    """Specs of the streams that `map_outputs` declares: options of RETURNN tensors, without batch axis."""
    return {name: spec_of_template(tensor) for name, tensor in make_templates(map_outputs, "map_outputs").items()}


class MapSeq:
    """A `map_seq` of a config, for our PostprocessingDataset.

    The TensorDict also has `seq_tag` and `seq_idx`. The function gets those of `epoch`, `seq_idx`, `seq_tag` and `rng`
    (a RandomState) that it takes.

    Args:
        outputs: the declared streams; default: those that it gets.
    """

    def __init__(self, function: Callable[..., Any], outputs: Collection[str] | None = None) -> None:
        self.function = function
        self.outputs = outputs

    def __call__(
        self,
        arrays: Mapping[str, Any],
        rng: np.random.Generator,
        epoch: int,
        seq_idx: int,
        seq_tag: str,
        specs: Mapping[str, TensorSpec],
    ) -> dict[str, np.ndarray]:
        offered = {"epoch": epoch, "seq_idx": seq_idx, "seq_tag": seq_tag, "rng": random_state(rng)}
        tensors = to_tensor_dict({**arrays, "seq_tag": np.array(seq_tag), "seq_idx": np.array(seq_idx)}, specs)
        mapped = self.function(tensors, **accepted(self.function, offered))
        return to_arrays(mapped, specs if self.outputs is None else self.outputs)


class MapStream:
    """A `map_seq_stream` of a config, for our PostprocessingStream.

    Sequences that come out without a tag of their own (`seq_tag` in the TensorDict) keep that of their place.
    """

    def __init__(self, function: Callable[..., Any], outputs: Collection[str] | None = None) -> None:
        self.function = function
        self.outputs = outputs

    def __call__(
        self, examples: Iterable[Example], rng: np.random.Generator, epoch: int, specs: Mapping[str, TensorSpec]
    ) -> Iterator[Example]:
        def tensor_dicts() -> Iterator[TensorDict]:
            for example in examples:
                tensors = to_tensor_dict({**example.streams, "seq_tag": np.array(example.seq_tag)}, specs)
                yield tensors

        offered = {"epoch": epoch, "rng": random_state(rng)}
        for number, tensors in enumerate(self.function(tensor_dicts(), **accepted(self.function, offered))):
            arrays = to_arrays(tensors, {*(specs if self.outputs is None else self.outputs), "seq_tag"})
            tag = arrays.pop("seq_tag", None)
            yield Example(str(tag) if tag is not None else f"seq-{number}", arrays)


class AudioFunction:
    """A function of a config on audio (`pre_process`, or one as `features`), for our AudioFeatures.

    It gets a RandomState as `random_state` in place of our generator `rng`.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *, rng: np.random.Generator, **facts: Any) -> Any:
        return self.function(random_state=random_state(rng), **facts)


def random_state(rng: np.random.Generator) -> np.random.RandomState:
    """RETURNN's kind of generator, seeded by ours."""
    return np.random.RandomState(int(rng.integers(2**32)))


def accepted(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the keywords that the function takes."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(offered)
    return {name: value for name, value in offered.items() if name in parameters}
