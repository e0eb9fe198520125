"""`torch_batching` as a function: a data pipe of torch that makes batches out of sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from returnn_hydra.compat.shim.util import get_fwd_compat_kwargs
from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.streaming import Example


@dataclass
class FunctionBatches:
    """The batches of a function of the config, which takes sequences as dicts of arrays and yields lists of them."""

    function: Callable[..., Iterable[list[dict[str, Any]]]]
    train: bool
    streams: tuple[str, ...]

    @classmethod
    def of(cls, values: Mapping[str, Any], train: bool, streams: Iterable[str]) -> FunctionBatches | None:
        """What the config says; None if it has no such function."""
        function = values.get("torch_batching")
        return cls(function, train, tuple(streams)) if callable(function) else None

    def __call__(self, examples: Iterator[Example], epoch: int) -> Iterator[list[Example]]:
        """The sequences of every batch.

        Raises:
            DataError: the function yields something else.
        """
        pipe = self.function(Sequences(examples, epoch), train=self.train, **get_fwd_compat_kwargs())
        for batch in pipe:
            if not isinstance(batch, list | tuple) or not all(isinstance(sequence, Mapping) for sequence in batch):
                raise DataError(f"torch_batching yielded {type(batch).__name__}: expected a list of the sequences")
            yield [self.example(sequence) for sequence in batch]

    def example(self, sequence: Mapping[str, Any]) -> Example:
        streams = {name: np.asarray(sequence[name]) for name in self.streams if name in sequence}
        return Example(str(sequence["seq_tag"]), streams)


class Sequences(IterableDataset):
    """Sequences as RETURNN's data pipes see them: with tag, number and epoch beside the data."""

    def __init__(self, examples: Iterator[Example], epoch: int) -> None:
        self.examples = examples
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        about = {"num_seqs": np.array(-1), "epoch": np.array(self.epoch), "complete_frac": np.array(-1.0)}
        for index, example in enumerate(self.examples):
            yield {
                **example.streams,
                "seq_tag": np.array(example.seq_tag),
                "seq_idx": np.array(index),
                **about,
            }
