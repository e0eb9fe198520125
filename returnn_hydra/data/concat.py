"""Data sets one after the other, and sequences joined into longer ones.

Legend: N sequences, T frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np

from returnn_hydra.data.checks import spec_differences, stream_spec
from returnn_hydra.data.dataset import DataError, Dataset, Examples
from returnn_hydra.data.files import PathLike, nearest, read_tag_list
from returnn_hydra.data.ordered import read_seq_lens
from returnn_hydra.data.views import (
    ComposedDataset,
    Indices,
    WrappedDataset,
    as_array,
    numbered,
    renewed,
    select,
    tag_index,
)


class Parts:
    """Which of several data sets a sequence is in, when they stand one after the other."""

    def __init__(self, names: Sequence[str], datasets: Sequence[Dataset], prefix_tags: bool) -> None:
        self.names = list(names)
        self.datasets = list(datasets)
        self.prefix_tags = prefix_tags

    @cached_property
    def starts(self) -> np.ndarray:
        """Index of the first sequence of every data set, and the number of all: (number of data sets + 1,)."""
        return np.cumsum([0, *map(len, self.datasets)])

    def split(self, indices: Indices) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """(data set, indices in it, where these stand in `indices`), for each data set that has some of them."""
        indices = as_array(indices)
        parts = np.searchsorted(self.starts, indices, side="right") - 1
        return [
            (part, indices[where] - self.starts[part], where)
            for part in np.unique(parts).tolist()
            for where in [np.flatnonzero(parts == part)]
        ]

    def tags(self, part: int, tags: list[str]) -> list[str]:
        """These tags of a data set, as they are to be seen outside."""
        return [f"{self.names[part]}:{tag}" for tag in tags] if self.prefix_tags else tags

    def seq_tags(self, indices: Indices) -> list[str]:
        """The tags of these sequences.

        Raises:
            DataError: two of the data sets have a tag in common.
        """
        self.check_tags()
        result = [""] * len(indices)
        for part, inside, where in self.split(indices):
            for position, tag in zip(
                where.tolist(), self.tags(part, self.datasets[part].seq_tags(inside)), strict=True
            ):
                result[position] = tag
        return result

    def check_tags(self) -> None:
        """Raise an error if two of the data sets have a tag in common (looked for once)."""
        if not self.prefix_tags and "_checked" not in self.__dict__:
            hashes = [np.array([hash(tag) for tag in all_tags(dataset)], dtype=np.int64) for dataset in self.datasets]
            ordered = np.sort(np.concatenate(hashes))
            if (ordered[1:] == ordered[:-1]).any():
                self._find_common_tag()
            self.__dict__["_checked"] = True

    def _find_common_tag(self) -> None:
        owner: dict[str, str] = {}
        for name, dataset in zip(self.names, self.datasets, strict=True):
            for tag in all_tags(dataset):
                if owner.setdefault(tag, name) != name:
                    raise DataError(
                        f"seq_tag {tag!r} is in both {owner[tag]!r} and {name!r}; "
                        "set prefix_tags=true to put the data set's name before every tag"
                    )

    def lengths(self, of_each: Sequence[np.ndarray | None]) -> np.ndarray | None:
        """The data sets' lengths as one array; None if one of them does not know its own."""
        known = [lengths for lengths in of_each if lengths is not None]
        return np.concatenate(known) if len(known) == len(of_each) else None

    def at_epoch(self, epoch: int) -> Parts:
        """The data sets of this epoch; itself if nothing changes."""
        datasets = [dataset.at_epoch(epoch) for dataset in self.datasets]
        same = all(new is old for new, old in zip(datasets, self.datasets, strict=True))
        return self if same else Parts(self.names, datasets, self.prefix_tags)


def all_tags(dataset: Dataset) -> list[str]:
    """The tags of all sequences."""
    return dataset.seq_tags(np.arange(len(dataset)))


class ConcatDataset(ComposedDataset):
    """Several data sets with the same streams, one after the other.

    Args:
        datasets: as a list, or with names.
        prefix_tags: put the data set's name (or its number) before every tag, for sets that have tags in common.

    Raises:
        DataError: their streams differ.
    """

    def __init__(self, datasets: Sequence[Dataset] | Mapping[str, Dataset], prefix_tags: bool = False) -> None:
        named = dict(datasets) if isinstance(datasets, Mapping) else {str(i): d for i, d in enumerate(datasets)}
        if not named:
            raise DataError("ConcatDataset: no data sets")
        self._parts = Parts(list(named), list(named.values()), prefix_tags)
        self.streams = self._parts.datasets[0].streams
        self._wanted = set(self.streams)
        for name, dataset in named.items():
            _check_same_streams(self._parts.names[0], self._parts.datasets[0], name, dataset)

    def __len__(self) -> int:
        return int(self._parts.starts[-1])

    def seq_tags(self, indices: Indices) -> list[str]:
        return self._parts.seq_tags(indices)

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        return self._parts.lengths([dataset.seq_lengths(stream) for dataset in self._parts.datasets])

    def order_lengths(self) -> np.ndarray | None:
        return self._parts.lengths([dataset.order_lengths() for dataset in self._parts.datasets])

    def read(self, indices: Indices) -> Examples:
        tags = [""] * len(indices)
        empty = np.zeros(0)
        streams = {name: [empty] * len(indices) for name in self.streams if name in self._wanted}
        for part, inside, where in self._parts.split(indices):
            examples = self._parts.datasets[part].read(inside)
            for i, position in enumerate(where.tolist()):
                tags[position] = self._parts.tags(part, examples.seq_tags[i : i + 1])[0]
                for name, arrays in streams.items():
                    arrays[position] = examples.streams[name][i]
        return Examples(tags, streams)

    def _inner(self) -> Iterable[Dataset]:
        return self._parts.datasets

    def with_streams(self, names: Sequence[str]) -> Dataset:
        parts = Parts(
            self._parts.names,
            [dataset.with_streams(names) for dataset in self._parts.datasets],
            self._parts.prefix_tags,
        )
        return renewed(self, _parts=parts, _wanted=set(names))

    def at_epoch(self, epoch: int) -> Dataset:
        parts = self._parts.at_epoch(epoch)
        return self if parts is self._parts else renewed(self, _parts=parts)


def _check_same_streams(first_name: str, first: Dataset, name: str, dataset: Dataset) -> None:
    if set(first.streams) != set(dataset.streams):
        raise DataError(f"data set {name!r} has {sorted(dataset.streams)}, but {first_name!r} {sorted(first.streams)}")
    for stream, spec in first.streams.items():
        if difference := spec_differences(spec, dataset.streams[stream]):
            raise DataError(
                f"stream {stream!r} differs between the data sets {first_name!r} and {name!r}: {difference}"
            )


class ConcatSeqsDataset(ComposedDataset):
    """Sequences made by joining sequences of another data set, stream by stream.

    Args:
        dataset: where the parts come from.
        seq_list_file: one new sequence per line: the tags of its parts, e.g. `a;b;c`; the line is its tag. Maybe
            packed (.gz).
        seq_len_file: {tag: length} of the parts as a Python literal or JSON; a new sequence is then ordered by their
            sum.
            Default: by its frames.
        seq_tag_delim: between the tags.
        remove_in_between_postfix: {stream: label} that every part ends with and that is cut, except from the last part.
        repeat_in_between_last_frame_up_to_multiple_of: {stream: n}: repeat the last frame of every part but the last,
            until its length is a multiple of n.
        pad_narrow_data_to_multiple_of_target_len: {stream: [other, n]}: cut the end of every part but the last, or
            repeat its last frame, until it has n times the frames of the stream `other`.

    Raises:
        DataError: a part is not in the data set, or does not end with the postfix.
    """

    def __init__(
        self,
        dataset: Dataset,
        seq_list_file: PathLike,
        seq_len_file: PathLike | None = None,
        seq_tag_delim: str = ";",
        remove_in_between_postfix: Mapping[str, int] | None = None,
        repeat_in_between_last_frame_up_to_multiple_of: Mapping[str, int] | None = None,
        pad_narrow_data_to_multiple_of_target_len: Mapping[str, Sequence] | None = None,
    ) -> None:
        self.dataset = dataset
        self.streams = dataset.streams
        self._wanted = set(self.streams)
        self.seq_list_file = seq_list_file
        self.seq_len_file = seq_len_file
        self.seq_tag_delim = seq_tag_delim
        self._postfix = dict(remove_in_between_postfix or {})
        self._multiple = dict(repeat_in_between_last_frame_up_to_multiple_of or {})
        self._targets = {
            k: (str(v[0]), int(v[1])) for k, v in (pad_narrow_data_to_multiple_of_target_len or {}).items()
        }
        for stream in [
            *self._postfix,
            *self._multiple,
            *self._targets,
            *(target for target, _ in self._targets.values()),
        ]:
            stream_spec(dataset, stream)
        if without := [name for name, spec in dataset.streams.items() if spec.time_axis != 0]:
            raise DataError(f"ConcatSeqsDataset: the streams {without} have no time axis in front to join along")

    @cached_property
    def _tags(self) -> list[str]:
        tags = read_tag_list(self.seq_list_file)
        tag_index(tags, str(self.seq_list_file))
        return tags

    @cached_property
    def _parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the parts of all sequences, and where each sequence's begin: (number of parts,), (N + 1,)."""
        index = tag_index(all_tags(self.dataset), type(self.dataset).__name__)
        split = [tag.split(self.seq_tag_delim) for tag in self._tags]
        missing = sorted({part for parts in split for part in parts if part not in index})
        if missing:
            raise DataError(
                f"{self.seq_list_file}: {len(missing)} tags are not in the data set, "
                f"e.g. {missing[0]!r}{nearest(missing[0], index)}"
            )
        return np.array([index[part] for parts in split for part in parts]), np.cumsum([0, *map(len, split)])

    def __len__(self) -> int:
        return len(self._tags)

    def seq_tags(self, indices: Indices) -> list[str]:
        return [self._tags[i] for i in indices]

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        lengths = self._part_lengths(stream)
        return None if lengths is None else np.add.reduceat(lengths, self._parts[1][:-1])

    def _part_lengths(self, stream: str) -> np.ndarray | None:
        parts, starts = self._parts
        lengths = select(self.dataset.seq_lengths(stream), parts)
        if lengths is None:
            return None
        inner = np.ones(len(parts), dtype=bool)
        inner[starts[1:] - 1] = False
        if stream in self._postfix:
            lengths = lengths - inner
        if stream in self._multiple:
            multiple = self._multiple[stream]
            lengths = np.where(inner, -(-lengths // multiple) * multiple, lengths)
        if stream in self._targets:
            target, multiple = self._targets[stream]
            targets = select(self.dataset.seq_lengths(target), parts)
            return None if targets is None else np.where(inner, targets * multiple, lengths)
        return lengths

    def order_lengths(self) -> np.ndarray | None:
        if self.seq_len_file is None:
            return super().order_lengths()
        lengths = read_seq_lens(self.seq_len_file)
        split = [tag.split(self.seq_tag_delim) for tag in self._tags]
        missing = sorted({part for parts in split for part in parts if part not in lengths})
        if missing:
            raise DataError(f"{self.seq_len_file}: no length of {len(missing)} sequences, e.g. {missing[0]!r}")
        return np.array([sum(lengths[part] for part in parts) for parts in split])

    def read(self, indices: Indices) -> Examples:
        parts, starts = self._parts
        indices = as_array(indices)
        ranges = [np.arange(starts[i], starts[i + 1]) for i in indices]
        examples = self.dataset.read(parts[np.concatenate(ranges)] if ranges else parts[:0])
        streams: dict[str, list[np.ndarray]] = {name: [] for name in self.streams if name in self._wanted}
        position = 0
        for num in map(len, ranges):
            members = range(position, position + num)
            position += num
            for name, arrays in streams.items():
                arrays.append(np.concatenate([self._part(examples, name, i, i == members[-1]) for i in members]))
        return Examples(self.seq_tags(indices), streams)

    def _part(self, examples: Examples, stream: str, i: int, is_last: bool) -> np.ndarray:
        array = examples.streams[stream][i]
        if is_last:
            return array
        if stream in self._postfix:
            if not len(array) or array[-1] != self._postfix[stream]:
                raise DataError(
                    f"seq_tag {examples.seq_tags[i]!r}, stream {stream!r}: ends with {array[-1:].tolist()}, "
                    f"expected the label {self._postfix[stream]} of remove_in_between_postfix"
                )
            array = array[:-1]
        if stream in self._multiple:
            array = _with_length(array, -(-len(array) // self._multiple[stream]) * self._multiple[stream])
        if stream in self._targets:
            target, multiple = self._targets[stream]
            array = _with_length(array, len(examples.streams[target][i]) * multiple)
        return array

    def with_streams(self, names: Sequence[str]) -> Dataset:
        needed = {*names, *(self._targets[name][0] for name in names if name in self._targets)}
        return renewed(self, dataset=self.dataset.with_streams(sorted(needed)), _wanted=set(names))

    def at_epoch(self, epoch: int) -> Dataset:
        dataset = self.dataset.at_epoch(epoch)
        return self if dataset is self.dataset else renewed(self, dataset=dataset)


def _with_length(array: np.ndarray, length: int) -> np.ndarray:
    """The first `length` frames; if there are fewer, the last one is repeated."""
    return (
        array[:length]
        if length <= len(array)
        else np.concatenate([array, np.repeat(array[-1:], length - len(array), axis=0)])
    )


class RepeatDataset(WrappedDataset):
    """Every sequence `times` times: the whole data set again and again. Further copies have "#2", "#3", ... behind
    their tags.
    """

    def __init__(self, dataset: Dataset, times: int) -> None:
        super().__init__(dataset)
        if times < 1:
            raise DataError(f"RepeatDataset: times={times}: must be at least 1")
        self.times = times

    def __len__(self) -> int:
        return len(self.dataset) * self.times

    def _tags(self, tags: list[str], indices: Indices) -> list[str]:
        return numbered(tags, as_array(indices) // max(len(self.dataset), 1))

    def seq_tags(self, indices: Indices) -> list[str]:
        return self._tags(self.dataset.seq_tags(as_array(indices) % max(len(self.dataset), 1)), indices)

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        lengths = self.dataset.seq_lengths(stream)
        return None if lengths is None else np.tile(lengths, self.times)

    def order_lengths(self) -> np.ndarray | None:
        lengths = self.dataset.order_lengths()
        return None if lengths is None else np.tile(lengths, self.times)

    def read(self, indices: Indices) -> Examples:
        examples = self.dataset.read(as_array(indices) % max(len(self.dataset), 1))
        return Examples(self._tags(examples.seq_tags, indices), examples.streams)
