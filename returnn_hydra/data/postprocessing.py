"""Functions of the user between a data set and the batches: on each sequence, or on the stream of all of them.

Every random draw depends on (seed, epoch, sequence) alone: neither the order of reading nor the number of workers
changes anything.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.checks import checked_streams, did_you_mean, specs_from_options
from returnn_hydra.data.dataset import DataError, Dataset, Examples, wrong_sequence
from returnn_hydra.data.order import SeqOrder
from returnn_hydra.data.ordered import indices_of_epoch
from returnn_hydra.data.reading import from_workers, own_generator
from returnn_hydra.data.streaming import Example, StreamingDataset
from returnn_hydra.data.views import Indices, WrappedDataset, as_array, renewed

BLOCK = 32
"""Sequences that are read together."""
Specs = Mapping[str, TensorSpec | Mapping[str, Any]]


class PostprocessingDataset(WrappedDataset):
    """Each sequence of another data set, changed by a function.

    Args:
        dataset: the sequences.
        map_seq: {stream: array} -> {stream: array}; it may also take, by name, any of `rng` (numpy Generator of this
            sequence and epoch), `epoch`, `seq_tag`, `seq_idx`, `specs` (what the streams of `dataset` look like).
        map_outputs: specs of the streams that the function returns; default: those of `dataset`.
        same_lengths: streams of which the function keeps the number of frames, so that batches can be made ahead;
            true: all.
        seed: of the generators.

    Raises:
        DataError: the function fails, or returns what the specs or `same_lengths` do not say.
    """

    def __init__(
        self,
        dataset: Dataset,
        map_seq: Callable[..., Mapping[str, Any]],
        map_outputs: Specs | None = None,
        same_lengths: bool | Sequence[str] = False,
        seed: int = 1,
    ) -> None:
        super().__init__(dataset)
        self.map_seq = map_seq
        self.streams = dict(dataset.streams if map_outputs is None else specs_from_options(map_outputs))
        self.same_lengths = _kept_streams(same_lengths, self.streams, dataset.streams)
        self.seed = seed
        self.epoch = 1

    def seq_lengths(self, stream: str) -> np.ndarray | None:
        if stream not in self.streams:
            raise DataError(f"PostprocessingDataset has no stream {stream!r}{did_you_mean(stream, self.streams)}")
        return self.dataset.seq_lengths(stream) if stream in self.same_lengths else None

    def read(self, indices: Indices) -> Examples:
        indices = as_array(indices)
        source = self.dataset.read(indices)
        lengths = {name: self.dataset.seq_lengths(name) for name in self.same_lengths}
        seqs = []
        for i, index in enumerate(indices.tolist()):
            tag = source.seq_tags[i]
            arrays = {name: source.streams[name][i].copy() for name in source.streams}  # it may change them
            facts = {"epoch": self.epoch, "seq_tag": tag, "seq_idx": index, "specs": self.dataset.streams}
            rng = np.random.default_rng([self.seed, self.epoch, index])
            result = call_by_name(self.map_seq, arrays, rng=rng, **facts)
            mapped = checked_streams(result, self.streams, f"map_seq, seq_tag {tag!r}")
            for name, known in lengths.items():
                if known is not None and len(mapped[name]) != known[index]:
                    raise DataError(
                        f"map_seq, seq_tag {tag!r}, stream {name!r}: {len(mapped[name])} frames of {known[index]}, "
                        "but same_lengths says that they stay"
                    )
            seqs.append(mapped)
        return Examples(source.seq_tags, {name: [seq[name] for seq in seqs] for name in self.streams})

    @property
    def is_block_copy(self) -> bool:
        return False

    def with_streams(self, names: Sequence[str]) -> Dataset:
        return self  # the function gets all streams

    def at_epoch(self, epoch: int) -> Dataset:
        return self if epoch == self.epoch else renewed(self, dataset=self.dataset.at_epoch(epoch), epoch=epoch)


def _kept_streams(
    same: bool | Sequence[str], streams: Mapping[str, TensorSpec], source: Mapping[str, TensorSpec]
) -> list[str]:
    if isinstance(same, bool):
        return [name for name, spec in streams.items() if spec.has_time and name in source] if same else []
    for name in same:
        if name not in streams or name not in source:
            raise DataError(f"same_lengths: no stream {name!r} before and after{did_you_mean(name, streams)}")
    return list(same)


def call_by_name(function: Callable[..., Any], first: Any, **facts: Any) -> Any:
    """The function, with those of the facts that it takes by name.

    Raises:
        DataError: in place of any other error, with the sequence.
    """
    parameters = list(inspect.signature(function).parameters.values())
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = {parameter.name for parameter in parameters[1:]}
    try:
        return function(first, **{name: value for name, value in facts.items() if takes_all or name in names})
    except DataError:
        raise
    except Exception as error:
        what = f"seq_tag {facts['seq_tag']!r}" if "seq_tag" in facts else f"epoch {facts['epoch']}"
        text = f"{function_name(function)}: {what}: {type(error).__name__}: {error}"
        raise wrong_sequence(facts.get("seq_tag"), text) from error


def function_name(function: Callable[..., Any]) -> str:
    """What the user calls it, also where arguments are bound to it."""
    inner = getattr(function, "func", function)
    return getattr(inner, "__name__", type(inner).__name__)


class DatasetStream(StreamingDataset):
    """The sequences of a data set one after the other, for data sets that don't know their lengths before reading.

    Args:
        dataset: the sequences.
        order: in which they come; default: as they are.
    """

    def __init__(self, dataset: Dataset, order: SeqOrder | None = None) -> None:
        self.dataset = dataset
        self.order = order or SeqOrder()
        self.streams = dataset.streams

    def iterate(self, epoch: int, rank: int = 0, num_ranks: int = 1) -> Iterator[Example]:
        dataset = self.dataset.at_epoch(epoch)
        indices = indices_of_epoch(dataset, self.order, epoch)[rank::num_ranks]
        for start in range(0, len(indices), BLOCK):
            examples = dataset.read(indices[start : start + BLOCK])
            for i, tag in enumerate(examples.seq_tags):
                yield Example(tag, {name: arrays[i] for name, arrays in examples.streams.items()})

    def file_of(self, seq_tag: str) -> str | None:
        return self.dataset.file_of(seq_tag)


class PostprocessingStream(StreamingDataset):
    """The stream of all sequences of a source, changed by a function, which may drop, add, join and reorder sequences.

    Args:
        source: a streaming source, or a data set (see DatasetStream for its order).
        map_seq_stream: iterator of Example -> iterator of Example; it may also take, by name, `rng` (numpy Generator
            of this epoch and shard), `epoch` and `specs` (what the streams of the source look like).
        map_outputs: specs of the streams that come out; default: those of the source.
        num_shards: the source is dealt to so many streams, and the function runs over each; then they take turns.
        num_workers: processes that run the shards, at most num_shards; what comes out is the same for any number.
        seed: of the generators.

    Raises:
        DataError: the function fails, or yields what the specs do not say.
    """

    def __init__(
        self,
        source: StreamingDataset | Dataset,
        map_seq_stream: Callable[..., Iterable[Example]],
        map_outputs: Specs | None = None,
        num_shards: int = 1,
        num_workers: int = 0,
        seed: int = 1,
    ) -> None:
        if num_shards < 1 or not 0 <= num_workers <= num_shards:
            what = f"num_shards={num_shards}, num_workers={num_workers}"
            raise DataError(f"{what}: expected at least one shard, and not more workers than shards")
        self.source = source if isinstance(source, StreamingDataset) else DatasetStream(source)
        self.map_seq_stream = map_seq_stream
        self.streams = dict(self.source.streams if map_outputs is None else specs_from_options(map_outputs))
        self.num_shards = num_shards
        self.num_workers = num_workers
        self.seed = seed

    def iterate(self, epoch: int, rank: int = 0, num_ranks: int = 1) -> Iterator[Example]:
        if self.num_shards % num_ranks == 0:
            first, last = (r * self.num_shards // num_ranks for r in (rank, rank + 1))
            yield from self._merged(epoch, range(first, last))
        else:  # every rank works out everything, and takes its part
            yield from itertools.islice(self._merged(epoch, range(self.num_shards)), rank, None, num_ranks)

    def file_of(self, seq_tag: str) -> str | None:
        return self.source.file_of(seq_tag)

    def _merged(self, epoch: int, shards: range) -> Iterator[Example]:
        num_workers = min(self.num_workers, len(shards))
        if not num_workers or get_worker_info() is not None:
            yield from itertools.chain.from_iterable(self.rounds(epoch, shards))
            return
        work = _Shards(self, epoch, shards)
        loader: DataLoader = DataLoader(
            work, batch_size=None, num_workers=num_workers, prefetch_factor=8, generator=own_generator(epoch)
        )
        for examples in from_workers(loader, lambda done: f"epoch {epoch}"):
            yield from examples  # type: ignore[misc]

    def rounds(self, epoch: int, shards: range) -> Iterator[list[Example]]:
        """The next sequence of each of the shards that have one, again and again."""
        streams = [self._shard(epoch, shard) for shard in shards]
        while streams:
            pairs = [(stream, next(stream, None)) for stream in streams]
            streams = [stream for stream, example in pairs if example is not None]
            examples = [example for _, example in pairs if example is not None]
            if examples:
                yield examples

    def _shard(self, epoch: int, shard: int) -> Iterator[Example]:
        rng = np.random.default_rng([self.seed, epoch, shard])
        source = map(_copied, self.source.iterate(epoch, shard, self.num_shards))
        name = function_name(self.map_seq_stream)
        last: str | None = None
        mapped = iter(call_by_name(self.map_seq_stream, source, rng=rng, epoch=epoch, specs=self.source.streams))
        while True:
            try:
                example = next(mapped)
            except StopIteration:
                return
            except DataError:
                raise
            except Exception as error:
                after = "at the begin" if last is None else f"after seq_tag {last!r}"
                raise DataError(f"{name}: epoch {epoch}, {after}: {type(error).__name__}: {error}") from error
            last = example.seq_tag
            yield replace(example, streams=checked_streams(example.streams, self.streams, f"{name}, seq_tag {last!r}"))


def _copied(example: Example) -> Example:
    """With arrays that a function may change."""
    return replace(example, streams={name: array.copy() for name, array in example.streams.items()})


class _Shards(IterableDataset):
    """The rounds of the shards of one worker."""

    def __init__(self, stream: PostprocessingStream, epoch: int, shards: range) -> None:
        self.stream = stream
        self.epoch = epoch
        self.shards = shards

    def __iter__(self) -> Iterator[list[Example] | DataError]:
        worker = get_worker_info()
        assert worker is not None
        first, last = (len(self.shards) * w // worker.num_workers for w in (worker.id, worker.id + 1))
        try:
            yield from self.stream.rounds(self.epoch, self.shards[first:last])
        except DataError as error:
            yield DataError(*error.args)


class Sequential:
    """Several functions on streams as one, for `map_seq_stream`."""

    def __init__(self, *functions: Callable[..., Iterable[Example]]) -> None:
        self.functions = functions

    def __call__(
        self, examples: Iterable[Example], rng: np.random.Generator, epoch: int, specs: Specs
    ) -> Iterable[Example]:
        for function in self.functions:
            examples = call_by_name(function, examples, rng=rng, epoch=epoch, specs=specs)
        return examples


class LaplaceOrdering:
    """Orders a stream by length within bins, up in the first bin, down in the next, and so on: little padding, some
    chance.

    While a bin is handed out, the next is filled at the same pace.

    Args:
        num_seqs_per_bin: sequences in a bin.
        length_key: the stream whose frames count.
    """

    def __init__(self, num_seqs_per_bin: int, length_key: str = "data") -> None:
        if num_seqs_per_bin < 1:
            raise DataError(f"LaplaceOrdering: num_seqs_per_bin={num_seqs_per_bin}: must be at least 1")
        self.num_seqs_per_bin = num_seqs_per_bin
        self.length_key = length_key

    def __call__(self, examples: Iterable[Example]) -> Iterator[Example]:
        source = iter(examples)
        down = False
        current = list(itertools.islice(source, self.num_seqs_per_bin))
        while current:
            current.sort(key=lambda example: len(example.streams[self.length_key]), reverse=down)
            down = not down
            following: list[Example] = []
            for example in current:
                following += itertools.islice(source, 1)
                yield example
            current = following
