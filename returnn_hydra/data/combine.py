"""Sequences of several data sets with different streams, mixed: multi-task training, or corpora of several kinds."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.arrays import empty_array
from returnn_hydra.data.checks import did_you_mean, spec_differences, stream_spec
from returnn_hydra.data.concat import Parts
from returnn_hydra.data.dataset import DataError, Dataset, Examples
from returnn_hydra.data.order import SeqOrder
from returnn_hydra.data.views import ComposedDataset, Indices, SubsetDataset, as_array, renewed

MIXINGS = ("default", "reversed", "interleave", "random_dataset")


class CombinedDataset(ComposedDataset):
    """All sequences of several data sets; each has the streams of its own data set, and those of the others empty.

    Args:
        datasets: {name: data set}; they stand in the order of their names.
        data_map: {name: {stream of the data set: stream here}}.
        mixing: how the data sets are mixed, each in its own order (see OrderedDataset):
            default: one after the other, and an ordering of the outside (sorted, laplace, ...) orders all together;
            reversed: the last data set first;
            interleave: always the data set that is least far through;
            random_dataset: drawn, weighted by their sizes.
        sampling_sizes: {name: number} of sequences in every epoch, or one number for all: the next ones of the data
            set, from the beginning again after its end.
        interleave_gumbel_scale: softens `interleave`: 1: like drawing by what remains; near 0: the one with the most
            left; "remaining": falls from 1 to 0 as the epoch goes on.
        partition_epoch: if the outside splits a pass into epochs: into how many, so that they share one order.
        fixed_random_seed, random_seed_offset: as of SeqOrder.
        prefix_tags: put the data set's name before every tag, for sets that have tags in common.

    Raises:
        DataError: a data set or stream that does not exist; two data sets give unlike streams the same name.
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset],
        data_map: Mapping[str, Mapping[str, str]],
        mixing: str = "default",
        sampling_sizes: int | Mapping[str, int] | None = None,
        interleave_gumbel_scale: float | str | None = None,
        partition_epoch: int = 1,
        fixed_random_seed: int | None = None,
        random_seed_offset: int = 0,
        prefix_tags: bool = False,
    ) -> None:
        if mixing not in MIXINGS:
            raise DataError(f"CombinedDataset: mixing={mixing!r}{did_you_mean(mixing, MIXINGS)}")
        if isinstance(interleave_gumbel_scale, str) and interleave_gumbel_scale != "remaining":
            raise DataError(f"interleave_gumbel_scale={interleave_gumbel_scale!r}: a number or 'remaining'")
        if unknown := [name for name in data_map if name not in datasets]:
            raise DataError(f"data_map: no data set {unknown[0]!r}{did_you_mean(unknown[0], datasets)}")
        names = sorted(data_map)
        self.data_map = {name: dict(data_map[name]) for name in names}
        self.mixing = mixing
        self.gumbel_scale = interleave_gumbel_scale
        self.sampling_sizes = _sampling_sizes(sampling_sizes, names)
        self._order = SeqOrder("random", 1, partition_epoch, 1, 1, fixed_random_seed, random_seed_offset)
        self._parts = Parts(names, [datasets[name] for name in names], prefix_tags)
        self.streams = self._joined_specs()
        self._wanted = set(self.streams)
        self._sources = {name: {out: own for own, out in self.data_map[name].items()} for name in names}

    def _joined_specs(self) -> dict[str, TensorSpec]:
        streams: dict[str, TensorSpec] = {}
        for name, dataset in zip(self._parts.names, self._parts.datasets, strict=True):
            for own, out in self.data_map[name].items():
                spec = stream_spec(dataset, own, f"data_map[{name!r}]: data set {name!r}")
                if difference := spec_differences(streams.setdefault(out, spec), spec):
                    raise DataError(f"data_map: stream {out!r} is given by unlike streams: {difference}")
        return streams

    def __len__(self) -> int:
        return int(self._parts.starts[-1])

    def seq_tags(self, indices: Indices) -> list[str]:
        return self._parts.seq_tags(indices)

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        if not stream_spec(self, stream).has_time:
            return None
        lengths = []
        for name, dataset in zip(self._parts.names, self._parts.datasets, strict=True):
            own = self._sources[name].get(stream)
            lengths.append(np.zeros(len(dataset), dtype=np.int64) if own is None else dataset.seq_lengths(own))
        return self._parts.lengths(lengths)

    def order_lengths(self) -> np.ndarray | None:
        """Of every sequence, what its own data set sorts by."""
        return self._parts.lengths([dataset.order_lengths() for dataset in self._parts.datasets])

    def read(self, indices: Indices) -> Examples:
        tags = [""] * len(indices)
        streams = {name: [self._empty[name]] * len(indices) for name in self.streams if name in self._wanted}
        for part, inside, where in self._parts.split(indices):
            examples = self._parts.datasets[part].read(inside)
            for position, tag in zip(where.tolist(), self._parts.tags(part, examples.seq_tags), strict=True):
                tags[position] = tag
            for own, out in self.data_map[self._parts.names[part]].items():
                if out in self._wanted:
                    for position, array in zip(where.tolist(), examples.streams[own], strict=True):
                        streams[out][position] = array
        return Examples(tags, streams)

    @cached_property
    def _empty(self) -> dict[str, np.ndarray]:
        return {name: empty_array(spec) for name, spec in self.streams.items()}

    def _inner(self) -> Iterable[Dataset]:
        return self._parts.datasets

    def with_streams(self, names: Sequence[str]) -> Dataset:
        datasets = []
        for name, dataset in zip(self._parts.names, self._parts.datasets, strict=True):
            own = [own for own, out in self.data_map[name].items() if out in names]
            datasets.append(dataset.with_streams(own) if own else dataset)
        parts = Parts(self._parts.names, datasets, self._parts.prefix_tags)
        return renewed(self, _parts=parts, _wanted=set(names))

    def at_epoch(self, epoch: int) -> Dataset:
        parts = self._parts.at_epoch(epoch)
        dataset = self if parts is self._parts else renewed(self, _parts=parts)
        if self.sampling_sizes is not None:
            return SubsetDataset(dataset, dataset._sampled(epoch))
        return dataset if self.mixing == "default" else SubsetDataset(dataset, dataset._mixed(epoch))

    def _sampled(self, epoch: int) -> np.ndarray:
        """The next sequences of every data set, for `sampling_sizes`."""
        assert self.sampling_sizes is not None
        result = []
        for name, start, dataset in zip(self._parts.names, self._parts.starts, self._parts.datasets, strict=False):
            size = self.sampling_sizes[name]
            if size and not len(dataset):
                raise DataError(f"sampling_sizes: {size} sequences of the data set {name!r}, which has none")
            result.append(start + ((epoch - 1) * size + np.arange(size)) % max(len(dataset), 1))
        return np.concatenate(result)

    def _mixed(self, epoch: int) -> np.ndarray:
        """All sequences in the order of `mixing`."""
        starts, sizes = self._parts.starts, np.diff(self._parts.starts)
        seed = self._order.random_seed(epoch, self._order.ordering(epoch, len(self)))
        if self.mixing == "reversed":
            picks = np.repeat(np.arange(len(sizes))[::-1], sizes[::-1])
        elif self.mixing == "random_dataset":
            ids = np.repeat(np.arange(len(sizes)), sizes).tolist()
            random.Random(seed).shuffle(ids)
            picks = np.array(ids, dtype=np.int64)
        elif self.gumbel_scale:
            picks = _gumbel_picks(sizes, self.gumbel_scale, np.random.RandomState(seed))
        else:
            done = np.concatenate([np.arange(1, n + 1) / max(n, 1) for n in sizes])
            parts = np.repeat(np.arange(len(sizes)), sizes)
            picks = parts[np.lexsort((parts, done))]
        result = np.empty(len(picks), dtype=np.int64)
        for part, start in enumerate(starts[:-1]):
            where = picks == part
            result[where] = start + as_array(range(int(where.sum())))
        return result


def _sampling_sizes(sizes: int | Mapping[str, int] | None, names: list[str]) -> dict[str, int] | None:
    if sizes is None:
        return None
    result = dict.fromkeys(names, sizes) if isinstance(sizes, int) else dict(sizes)
    if set(result) != set(names):
        raise DataError(f"sampling_sizes: needs a number for each of {names}, got {sorted(result)}")
    return result


def _gumbel_picks(sizes: np.ndarray, scale: float | str, rng: np.random.RandomState) -> np.ndarray:
    """Which data set comes next, drawn from softmax(log(what remains) / scale) by the Gumbel-max trick."""
    used = np.zeros(len(sizes), dtype=np.int64)
    picks = np.empty(int(sizes.sum()), dtype=np.int64)
    for step in range(len(picks)):
        left = np.flatnonzero(used < sizes)
        remaining = (sizes - used)[left]
        factor = 1.0 - ((used + 1) / sizes)[left].max() if isinstance(scale, str) else float(scale)
        keys = np.log(np.maximum(remaining, 1.0)) + factor * rng.gumbel(size=len(left))
        picks[step] = left[np.argmax(keys)]
        used[picks[step]] += 1
    return picks
