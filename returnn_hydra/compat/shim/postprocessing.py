"""returnn.datasets.postprocessing: what a config composes its `map_seq` and `map_seq_stream` of, on TensorDicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from returnn_hydra.compat.map_seq import accepted
from returnn_hydra.data import postprocessing
from returnn_hydra.data.streaming import Example
from returnn_hydra.frontend.tensor_dict import TensorDict

__all__ = ["LaplaceOrdering", "Sequential"]


class Sequential:
    """Several functions as one: the first gets the sequence (or the stream of them), each next what came out."""

    def __init__(self, *postprocessing_funcs: Callable[..., Any]) -> None:
        self.functions = postprocessing_funcs

    def __call__(self, value: Any, **facts: Any) -> Any:
        for function in self.functions:
            value = function(value, **accepted(function, facts))
        return value


class LaplaceOrdering:
    """Orders a stream by length within bins, up and down in turn; see returnn_hydra.data.postprocessing."""

    def __init__(self, num_seqs_per_bin: int, length_key: str = "data") -> None:
        self.length_key = length_key
        self._order = postprocessing.LaplaceOrdering(num_seqs_per_bin, length_key)

    def __call__(self, iterator: Iterable[TensorDict], **_facts: Any) -> Iterator[TensorDict]:
        waiting: dict[int, TensorDict] = {}

        def examples() -> Iterator[Example]:
            for number, tensors in enumerate(iterator):
                waiting[number] = tensors
                yield Example(str(number), {self.length_key: np.asarray(tensors[self.length_key].raw_tensor)})

        for example in self._order(examples()):
            yield waiting.pop(int(example.seq_tag))
