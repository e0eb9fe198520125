"""Any object with `__len__` and `__getitem__` as a data set."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.checks import checked_streams, specs_from_options, stream_spec
from returnn_hydra.data.dataset import DataError, Dataset, Examples
from returnn_hydra.data.views import Indices, SubsetDataset


class MapStyle(Protocol):
    """What a user writes: a torch `Dataset`, a list, or a class of one's own.

    It may also have `get_seq_len(index) -> int` (frames, for orderings by length), `get_seq_lengths(stream) -> array`
    (exact frames of all sequences, so that batches can be made ahead), `get_seq_tag(index) -> str` and
    `get_seq_order(epoch) -> indices` (which sequences an epoch has).
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


class MapDataset(Dataset):
    """The sequences of a map-style object.

    Args:
        data: the object, or something to call that makes it. `data[i]` is {stream: array}.
        streams: specs.

    Raises:
        DataError: a sequence is not what the specs say.
    """

    def __init__(self, data: Any, streams: Mapping[str, TensorSpec | Mapping[str, Any]]) -> None:
        if isinstance(data, type) or (callable(data) and not hasattr(data, "__getitem__")):
            data = data()
        for method in ("__len__", "__getitem__"):
            if not hasattr(data, method):
                raise DataError(f"MapDataset: a {type(data).__name__} has no {method}")
        self.data: MapStyle = data
        self.streams = specs_from_options(streams)

    def __len__(self) -> int:
        return len(self.data)

    def seq_tags(self, indices: Indices) -> list[str]:
        tag = getattr(self.data, "get_seq_tag", "seq-{}".format)
        return [str(tag(int(i))) for i in indices]

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        if not stream_spec(self, stream).has_time or not hasattr(self.data, "get_seq_lengths"):
            return None
        lengths = self.data.get_seq_lengths(stream)
        return None if lengths is None else np.asarray(lengths, dtype=np.int64)

    def order_lengths(self) -> np.ndarray | None:
        return self._seq_lens if hasattr(self.data, "get_seq_len") else super().order_lengths()

    @cached_property
    def _seq_lens(self) -> np.ndarray:
        return np.array([self.data.get_seq_len(i) for i in range(len(self))])  # type: ignore[attr-defined]

    def read(self, indices: Indices) -> Examples:
        tags = self.seq_tags(indices)
        seqs = [
            checked_streams(self.data[int(i)], self.streams, f"{type(self.data).__name__}, seq_tag {tag!r}")
            for i, tag in zip(indices, tags, strict=True)
        ]
        return Examples(tags, {name: [seq[name] for seq in seqs] for name in self.streams})

    def at_epoch(self, epoch: int) -> Dataset:
        if not hasattr(self.data, "get_seq_order"):
            return self
        try:
            return SubsetDataset(self, self.data.get_seq_order(epoch=epoch))
        except NotImplementedError:  # how RETURNN's MapDatasetBase says that it has no order of its own
            return self
