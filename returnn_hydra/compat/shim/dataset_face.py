"""A data set with the methods that RETURNN's data sets have for reading sequences one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.compat.shim.util import NumbersDict
from returnn_hydra.data.dataset import Dataset, Examples

MAIN_STREAM = "data"


class DatasetFace(Dataset):
    """A data set of this project under RETURNN's methods: `init_seq_order`, `load_seqs`, `get_data`, ...

    `init_seq_order` decides on the epoch, or on a list of tags; sequences are numbered in that order.
    """

    def __init__(self, source: Dataset) -> None:
        self.source = source
        self.streams = source.streams
        self.epoch: int | None = None
        self.labels: dict[str, list[str]] = {
            name: list(spec.vocab.labels) for name, spec in source.streams.items() if spec.vocab is not None
        }
        self._current = source
        self._indices = np.arange(len(source))

    def __len__(self) -> int:
        return len(self.source)

    def seq_tags(self, indices: Sequence[int] | np.ndarray) -> list[str]:
        return self.source.seq_tags(indices)

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        return self.source.seq_lengths(stream)

    def read(self, indices: Sequence[int] | np.ndarray) -> Examples:
        return self.source.read(indices)

    def order_lengths(self) -> np.ndarray | None:
        return self.source.order_lengths()

    def at_epoch(self, epoch: int) -> Dataset:
        return self.source.at_epoch(epoch)

    @property
    def num_outputs(self) -> dict[str, tuple[int, int]]:
        """Stream to (number of features or classes, number of axes of a sequence: 1 for classes)."""
        return {name: (spec.dim or 0, len(_shape(spec))) for name, spec in self.streams.items()}

    @property
    def num_inputs(self) -> int:
        """Features of the main stream."""
        return self.get_data_dim(self.get_default_input_data_key())

    @property
    def num_seqs(self) -> int:
        """Of the epoch."""
        return len(self._indices)

    def init_seq_order(
        self, epoch: int | None = None, seq_list: Sequence[str] | None = None, seq_order: Sequence[int] | None = None
    ) -> bool:
        """Begin an epoch: in its own order, or exactly the sequences with these tags or numbers.

        Raises:
            ValueError: a tag that is not there.
        """
        self.epoch = epoch or 1
        self._current = self.source.at_epoch(self.epoch)
        self._indices = np.arange(len(self._current))
        if seq_list is not None:
            place = {tag: number for number, tag in enumerate(self._current.seq_tags(self._indices))}
            missing = [tag for tag in seq_list if tag not in place]
            if missing:
                raise ValueError(f"init_seq_order: no sequence {missing[0]!r} (there are {len(place)} sequences)")
            seq_order = [place[tag] for tag in seq_list]
        if seq_order is not None:
            self._indices = np.asarray(seq_order, dtype=np.int64)
        return True

    def finish_epoch(self, *, free_resources: bool = False) -> None:
        """Nothing is kept between epochs."""

    def is_less_than_num_seqs(self, seq_idx: int) -> bool:
        return seq_idx < self.num_seqs

    def load_seqs(self, start: int, end: int) -> None:
        """Sequences are read when they are asked for."""

    def get_data(self, seq_idx: int, key: str) -> np.ndarray:
        """One stream of a sequence of the epoch."""
        return self._current.read([self._index(seq_idx)]).streams[key][0]

    def get_tag(self, seq_idx: int) -> str:
        return self._current.seq_tags([self._index(seq_idx)])[0]

    def get_all_tags(self) -> list[str]:
        """Of the epoch's data, in its order."""
        return self._current.seq_tags(np.arange(len(self._current)))

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        return len(self._current)

    def get_seq_length(self, seq_idx: int) -> NumbersDict:
        """Frames of every stream with a time axis, as RETURNN's NumbersDict."""
        read = self._current.read([self._index(seq_idx)])
        return NumbersDict({name: len(read.streams[name][0]) for name, spec in self.streams.items() if spec.has_time})

    def get_data_keys(self) -> list[str]:
        return list(self.streams)

    def get_target_list(self) -> list[str]:
        return [name for name in self.streams if name != self.get_default_input_data_key()]

    def get_default_input_data_key(self) -> str:
        return MAIN_STREAM if MAIN_STREAM in self.streams else next(iter(self.streams))

    def get_data_dim(self, key: str) -> int:
        return self.streams[key].dim or 0

    def get_data_dtype(self, key: str) -> str:
        return self.streams[key].dtype or "float32"

    def get_data_shape(self, key: str) -> list[int | None]:
        """The shape of a frame."""
        return list(_shape(self.streams[key])[1:])

    def is_data_sparse(self, key: str) -> bool:
        return self.streams[key].sparse

    def get_complete_frac(self, sorted_seq_idx: int, **_options: Any) -> float:
        """The part of the epoch that is done after this sequence."""
        return (sorted_seq_idx + 1) / max(self.num_seqs, 1)

    def serialize_data(self, key: str, data: np.ndarray) -> str:
        """Class indices as the words of the stream's vocabulary."""
        return " ".join(self.labels[key][int(index)] for index in data)

    def _index(self, seq_idx: int) -> int:
        return int(self._indices[seq_idx])


def _shape(spec: TensorSpec) -> tuple[int | None, ...]:
    return spec.shape if spec.shape is not None else ((None,) if spec.sparse else (None, spec.dim))


class DatasetSeq:
    """One sequence, for data sets that make their own: features of the main stream, or all streams as a dict."""

    def __init__(
        self,
        seq_idx: int,
        features: np.ndarray | Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray] | None = None,
        seq_tag: str | None = None,
        complete_frac: float | None = None,
    ) -> None:
        main = dict(features) if isinstance(features, Mapping) else {MAIN_STREAM: np.asarray(features)}
        self.seq_idx = seq_idx
        self.seq_tag = seq_tag or f"seq-{seq_idx}"
        self.features: dict[str, np.ndarray] = {**main, **(targets or {})}
        self.complete_frac = complete_frac

    @property
    def num_frames(self) -> NumbersDict:
        """Length of every stream; 1 for one without axes."""
        return NumbersDict({key: len(value) if value.ndim else 1 for key, value in self.features.items()})

    def get_data(self, key: str) -> np.ndarray:
        return self.features[key]

    def get_data_keys(self) -> list[str]:
        return list(self.features)


def convert_data_dims(data_dims: Any, leave_dict_as_is: bool = False) -> Any:
    """`num_outputs` as RETURNN keeps it: stream to (dim, axes). A number is one of classes; alone, of `classes`."""
    if isinstance(data_dims, int):
        data_dims = {"classes": data_dims}
    if leave_dict_as_is:
        return dict(data_dims)
    return {key: (value, 1) if isinstance(value, int) else tuple(value) for key, value in data_dims.items()}
