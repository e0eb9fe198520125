"""Some of a data set's sequences: by tag, by length, by lot, or the short ones first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from returnn_hydra.data.checks import stream_spec
from returnn_hydra.data.concat import all_tags
from returnn_hydra.data.dataset import DataError, Dataset, Examples
from returnn_hydra.data.files import PathLike, nearest, read_tag_list
from returnn_hydra.data.ordered import EpochDataset
from returnn_hydra.data.views import ComposedDataset, Indices, SubsetDataset, renewed


class _ChosenDataset(ComposedDataset):
    """Base: the sequences that `_choose` says, found out at the first use."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.streams = dataset.streams

    def _choose(self) -> np.ndarray:
        """Indices of the sequences that stay."""
        raise NotImplementedError

    @cached_property
    def _chosen(self) -> SubsetDataset:
        return SubsetDataset(self.dataset, self._choose())

    def __len__(self) -> int:
        return len(self._chosen)

    def seq_tags(self, indices: Indices) -> list[str]:
        return self._chosen.seq_tags(indices)

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        return self._chosen.seq_lengths(stream)

    def order_lengths(self) -> np.ndarray | None:
        return self._chosen.order_lengths()

    def read(self, indices: Indices) -> Examples:
        return self._chosen.read(indices)

    def with_streams(self, names: Sequence[str]) -> Dataset:
        return renewed(self, dataset=self.dataset.with_streams(names))

    def at_epoch(self, epoch: int) -> Dataset:
        dataset = self.dataset.at_epoch(epoch)
        return self if dataset is self.dataset else renewed(self, dataset=dataset)


class FilterDataset(_ChosenDataset):
    """The sequences that are wanted, in the order of the data set.

    Args:
        dataset: all sequences.
        seq_list_filter_file: tags of the wanted ones, one per line (.gz) or a list (.pkl).
        seq_tags: the tags themselves, instead.
        exclude_seq_tags: tags of unwanted ones.
        min_seq_length, max_seq_length: frames, a number for all streams with a time axis or {stream: number}.
        require_all: a wanted tag that the data set does not have is an error.

    Raises:
        DataError: none is left, a wanted tag does not exist, or lengths are not known.
    """

    def __init__(
        self,
        dataset: Dataset,
        seq_list_filter_file: PathLike | None = None,
        seq_tags: Sequence[str] | None = None,
        exclude_seq_tags: Sequence[str] = (),
        min_seq_length: int | Mapping[str, int] | None = None,
        max_seq_length: int | Mapping[str, int] | None = None,
        require_all: bool = True,
    ) -> None:
        super().__init__(dataset)
        if seq_list_filter_file is not None and seq_tags is not None:
            raise DataError("FilterDataset: either seq_list_filter_file or seq_tags")
        self.file = seq_list_filter_file
        self.wanted_tags = None if seq_tags is None else list(seq_tags)
        self.unwanted_tags = set(exclude_seq_tags)
        self.limits = [(1, _per_stream(dataset, min_seq_length)), (-1, _per_stream(dataset, max_seq_length))]
        self.require_all = require_all

    def _choose(self) -> np.ndarray:
        keep = np.ones(len(self.dataset), dtype=bool)
        wanted = read_tag_list(self.file) if self.file is not None else self.wanted_tags
        if wanted is not None or self.unwanted_tags:
            tags = all_tags(self.dataset)
            wanted_set = set(tags if wanted is None else wanted)
            keep &= [tag in wanted_set and tag not in self.unwanted_tags for tag in tags]
            self._check_wanted(wanted_set, tags)
        for sign, limits in self.limits:
            for stream, limit in limits.items():
                lengths = self.dataset.seq_lengths(stream)
                if lengths is None:
                    raise DataError(f"FilterDataset: the lengths of stream {stream!r} are not known before reading")
                keep &= sign * lengths >= sign * limit
        if not keep.any() and len(keep):
            raise DataError(f"FilterDataset: none of the {len(keep)} sequences is left")
        return np.flatnonzero(keep)

    def _check_wanted(self, wanted: set[str], tags: list[str]) -> None:
        if self.require_all and (missing := sorted(wanted - set(tags))):
            where = "seq_tags" if self.file is None else str(self.file)
            raise DataError(
                f"{where}: {len(missing)} of the {len(wanted)} wanted sequences are not in the data set, "
                f"e.g. {missing[0]!r}{nearest(missing[0], tags)}"
            )


def _per_stream(dataset: Dataset, limit: int | Mapping[str, int] | None) -> dict[str, int]:
    if limit is None:
        return {}
    if isinstance(limit, int):
        return {name: limit for name, spec in dataset.streams.items() if spec.has_time}
    for stream in limit:
        stream_spec(dataset, stream)
    return dict(limit)


class RandomSubset(_ChosenDataset):
    """Some sequences drawn once, the same in every epoch, in random order (RETURNN's `fixed_random_subset`).

    Args:
        dataset: all sequences.
        size: how many, or below 1 which part of all.
        seed: of the draw.
    """

    def __init__(self, dataset: Dataset, size: float, seed: int = 42) -> None:
        super().__init__(dataset)
        if size <= 0 or (size >= 1 and size != int(size)):
            raise DataError(f"RandomSubset: size={size}: a part between 0 and 1, or a number of sequences")
        self.size = size
        self.seed = seed

    def _choose(self) -> np.ndarray:
        order = np.arange(len(self.dataset))
        np.random.RandomState(self.seed).shuffle(order)
        return order[: int(len(order) * self.size) if self.size < 1 else int(self.size)]


class CurriculumDataset(ComposedDataset, EpochDataset):
    """The short sequences first: as many as keep the mean length below a limit that depends on the epoch.

    Args:
        dataset: all sequences.
        max_mean_length: {"first-last": limit}, e.g. {"1-3": 200, "4-": 500}; epochs without a limit have all sequences.
            Lengths are what orderings sort by.

    Raises:
        DataError: a range of epochs can't be read, or lengths are not known.
    """

    def __init__(self, dataset: Dataset, max_mean_length: Mapping[str, float]) -> None:
        self.dataset = dataset
        self.streams = dataset.streams
        self.limits = {_epoch_range(text): limit for text, limit in max_mean_length.items()}

    def _of_epoch(self, epoch: int) -> Dataset:
        dataset = self.dataset.at_epoch(epoch)
        limits = [limit for (first, last), limit in self.limits.items() if first <= epoch <= last]
        if not limits:
            return dataset
        lengths = dataset.order_lengths()
        if lengths is None:
            raise DataError("CurriculumDataset: lengths are not known before reading")
        by_length = np.argsort(lengths, kind="stable")
        means = np.cumsum(lengths[by_length]) / np.arange(1, len(lengths) + 1)
        num = int(np.searchsorted(means, min(limits), side="right"))
        if not num:
            raise DataError(f"CurriculumDataset: epoch {epoch}: the shortest sequence is longer than {min(limits)}")
        return SubsetDataset(dataset, np.sort(by_length[:num]))


def _epoch_range(text: str) -> tuple[int, float]:
    first, dash, last = str(text).partition("-")
    try:
        start = int(first) if first else 1
        return start, (float("inf") if dash and not last else int(last) if dash else start)
    except ValueError:
        raise DataError(f"CurriculumDataset: epochs {text!r}: expected e.g. '1-5', '6-' or '7'") from None
