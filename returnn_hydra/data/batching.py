"""Which sequences make up which batch.

Greedy, in the order of the epoch: a sequence starts a new batch if the padded batch would get larger than `batch_size`
frames with it. A batch of n sequences with the lengths t_1 .. t_n fits if n * max(t) <= batch_size, that is, if
n <= batch_size // t_i for every i. So all limits of all streams come down to one number per sequence, the most
sequences of a batch that it can be in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.random import RandomState

from returnn_hydra.data.batches import Batches, Report
from returnn_hydra.data.callables import by_name
from returnn_hydra.data.dataset import wrong_sequence

Lengths = Mapping[str, np.ndarray]
"""Stream name to (N,) frames of every sequence of the corpus."""
PerStream = int | Mapping[str, int] | None
"""One number for every stream with a time axis, or by stream."""
UNLIMITED = 2**62
BLOCK = 1 << 20
LEAST = {
    "batch_size": 1, "packed_batch_size": 1, "max_seqs": 1, "min_seq_length": 0, "max_seq_length": 0,
    "min_chunk_size": 0,
}  # fmt: skip
"""Smallest value of the options that are numbers."""


@dataclass(frozen=True)
class Batching:
    """How the sequences of an epoch are put into batches.

    Raises:
        ValueError: an option that is out of range.
    """

    batch_size: PerStream | Callable[..., Any] = None
    """Most frames of a padded batch, max(length) * sequences, in every stream (or those named). None: no limit.
    A function of (epoch, seq_idx, epoch_continuous), of those that it takes, is asked for every sequence."""
    max_seqs: int | Callable[..., Any] | None = None
    """Most sequences of a batch; None or -1: no limit."""
    packed_batch_size: PerStream = None
    """Most frames of a batch without padding."""
    min_seq_length: PerStream = None
    max_seq_length: PerStream = None
    """Shorter and longer sequences are left out, before the corpus is split into epochs."""
    chunking: Any = None
    """Cut sequences: size, "size:step" or [size, step] in frames, or both by stream: [{data: 60}, {data: 30}]."""
    min_chunk_size: PerStream = None
    """Shorter chunks are left out."""
    on_too_long: str = "alone"
    """A sequence longer than `batch_size`: a batch `alone`, `skip` it, or an `error`."""
    shuffle_batches: bool | int = False
    """Shuffle the batches of an epoch; a number: only within so many in a row."""
    buckets: Sequence[tuple[int, int]] | None = None
    """Instead of `batch_size` and `max_seqs`: (longest length, sequences) of each bucket. A sequence goes to the first
    that it fits into, and a full bucket is a batch. Longer sequences are skipped, or an error by `on_too_long`."""
    bucket_stream: str | None = None
    """Whose lengths the buckets are of; default: the first stream's."""
    random_bucket_prob: float = 0.0
    """With this probability a sequence goes to any of the buckets that it fits into instead."""

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            for value in _values(getattr(self, name)):
                if type(value) is not int or (value < least and (name, value) != ("max_seqs", -1)):
                    raise ValueError(f"{name}={getattr(self, name)!r}: expected a whole number from {least}")
        if self.on_too_long not in ("alone", "skip", "error"):
            raise ValueError(f"on_too_long={self.on_too_long!r}: expected alone, skip or error")
        if self.buckets is not None and not _are_pairs(self.buckets):
            raise ValueError(f"buckets={self.buckets!r}: expected pairs [longest length, sequences] of numbers from 1")
        if not 0 <= self.random_bucket_prob <= 1 or (self.random_bucket_prob and self.buckets is None):
            raise ValueError(f"random_bucket_prob={self.random_bucket_prob}: expected 0 to 1, together with buckets")
        if not isinstance(self.shuffle_batches, int) or self.shuffle_batches < 0:
            raise ValueError(f"shuffle_batches={self.shuffle_batches!r}: expected true, false, or a number of batches")
        parse_chunking(self.chunking)

    def check_streams(self, names: Sequence[str]) -> None:
        """Every stream that an option names must be one of these, the streams with a time axis.

        Raises:
            ValueError: the option names another one.
        """
        known = dict.fromkeys(names)
        chunking = parse_chunking(self.chunking) or (None, None)
        for name in ("batch_size", "packed_batch_size", "min_seq_length", "max_seq_length", "min_chunk_size"):
            limit = getattr(self, name)
            if not callable(limit):
                _by_stream(limit, known, name)
        for part in chunking:
            _by_stream(part, known, "chunking")

    def passes(self, lengths: Lengths) -> np.ndarray | None:
        """(N,) bool: sequences within `min_seq_length` and `max_seq_length`; None: no filter is set."""
        keep = None
        for limits, inside in ((self.min_seq_length, np.greater_equal), (self.max_seq_length, np.less_equal)):
            for stream, limit in _by_stream(limits, lengths).items():
                passes = inside(lengths[stream], limit)
                keep = passes if keep is None else keep & passes
        return keep

    def most_seqs(self, lengths: Lengths, max_seqs: int | None) -> np.ndarray:
        """The most sequences in a batch with each of these; 0: it is longer than `batch_size`."""
        some = next(iter(lengths.values()))
        limit = UNLIMITED if max_seqs in (None, -1) else max_seqs
        most = np.full(len(some), limit, np.int64)
        limits = None if callable(self.batch_size) else self.batch_size
        for stream, frames in _by_stream(limits, lengths).items():
            fitting = frames // np.maximum(lengths[stream], 1)
            fitting[lengths[stream] == 0] = UNLIMITED
            np.minimum(most, fitting, out=most)
        return most

    def make(
        self,
        indices: np.ndarray,
        lengths: Lengths,
        epoch: int = 1,
        tag: Callable[[int], str] | None = None,
        rng: RandomState | None = None,
    ) -> Batches:
        """All batches of an epoch, in time linear in the number of sequences.

        Args:
            indices: (n,) the sequences in their order.
            tag: the name of a sequence, for errors.
            rng: draws for `random_bucket_prob`.

        Raises:
            DataError: a sequence longer than `batch_size` with `on_too_long: error`; streams that chunk unevenly.
        """
        entries, starts, ends, report = self._cut(np.asarray(indices), lengths, tag)
        used = {
            name: ends[name] - starts[name] if name in starts else values[entries] for name, values in lengths.items()
        }
        if not used:
            used = {"": np.zeros(len(entries), np.int64)}
        too_long = self._too_long(used)
        num_too_long = int(np.count_nonzero(too_long))
        if num_too_long and self.on_too_long == "error":
            entry = int(np.argmax(too_long))
            seq_tag = tag(int(entries[entry])) if tag else None
            raise wrong_sequence(seq_tag, self._describe_too_long(entry, entries, used, seq_tag))
        if num_too_long and (self.on_too_long == "skip" or self.buckets is not None):
            keep = ~too_long
            entries = entries[keep]
            used, starts, ends = ({k: v[keep] for k, v in values.items()} for values in (used, starts, ends))
            report = replace(report, num_skipped=num_too_long)
        report = replace(report, num_too_long=num_too_long)
        if self.buckets is not None:
            order, offsets = self._fill_buckets(self._bucket_lengths(used), rng or RandomState(epoch))
            entries = entries[order]
            starts, ends = ({k: v[order] for k, v in values.items()} for values in (starts, ends))
        else:
            offsets = self._offsets(used, epoch)
        return Batches(entries, offsets, starts, ends, report)

    def _too_long(self, used: Lengths) -> np.ndarray:
        if self.buckets is not None:
            return self._bucket_lengths(used) > max(length for length, _ in self.buckets)
        if self.batch_size is None or callable(self.batch_size):
            return np.zeros(len(next(iter(used.values()))), np.bool_)
        return self.most_seqs(used, None) == 0

    def _bucket_lengths(self, used: Lengths) -> np.ndarray:
        name = next(iter(used)) if self.bucket_stream is None else self.bucket_stream
        if name not in used:
            raise ValueError(f"bucket_stream={name!r}: no stream with a time axis (there is: {', '.join(used)})")
        return used[name]

    def _describe_too_long(self, entry: int, entries: np.ndarray, used: Lengths, seq_tag: str | None) -> str:
        name = f"number {entries[entry]}" if seq_tag is None else seq_tag
        limit = self.buckets if self.buckets is not None else self.batch_size
        frames = ", ".join(f"{stream}: {values[entry]}" for stream, values in used.items())
        return f"sequence {name!r} is longer (frames of {frames}) than a batch may be ({limit}), and on_too_long=error"

    def _offsets(self, used: Lengths, epoch: int) -> np.ndarray:
        """Where each batch begins, and the end."""
        if callable(self.batch_size) or callable(self.max_seqs) or self.packed_batch_size is not None:
            num = len(next(iter(used.values())))
            steps = ({name: int(values[i]) for name, values in used.items()} for i in range(num))
            return np.fromiter(self._greedy_steps(steps, epoch, num), np.int64)
        return greedy_offsets(self.most_seqs(used, self.max_seqs))

    def _greedy_steps(self, steps: Iterable[Mapping[str, int]], epoch: int, num_seqs: int) -> Iterator[int]:
        filler = Filler(self, epoch, num_seqs)
        count = 0
        for lengths in steps:
            if filler.starts_new_batch(lengths):
                yield count
            count += 1
        if count == 0:
            yield 0
        yield count

    def _fill_buckets(self, lengths: np.ndarray, rng: RandomState) -> tuple[np.ndarray, np.ndarray]:
        """Entries in the order in which the buckets fill, and where each batch begins."""
        assert self.buckets is not None
        buckets = sorted(tuple(bucket) for bucket in self.buckets)
        choice = np.searchsorted([length for length, _ in buckets], lengths).tolist()
        filling: list[list[int]] = [[] for _ in buckets]
        order: list[int] = []
        offsets = [0]
        for entry, bucket in enumerate(choice):
            if self.random_bucket_prob and bucket < len(buckets) - 1 and rng.rand() < self.random_bucket_prob:
                bucket = rng.randint(bucket, len(buckets))
            filling[bucket].append(entry)
            if len(filling[bucket]) == buckets[bucket][1]:
                order += filling[bucket]
                offsets.append(len(order))
                filling[bucket] = []
        for rest in filling:
            if rest:
                order += rest
                offsets.append(len(order))
        return np.asarray(order, np.int64), np.asarray(offsets, np.int64)

    def _cut(
        self, indices: np.ndarray, lengths: Lengths, tag: Callable[[int], str] | None
    ) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray], Report]:
        """Entries (sequences, or their chunks) with the first and the last frames of the cut streams."""
        chunking = parse_chunking(self.chunking)
        if chunking is None:
            return indices, {}, {}, Report()
        smallest = _by_stream(self.min_chunk_size, lengths)
        counts: dict[str, np.ndarray] = {}
        for stream, (size, step) in _chunked_streams(chunking, lengths).items():
            least = max(smallest.get(stream, 1), 1)
            frames = lengths[stream][indices]
            counts[stream] = np.maximum((frames - least) // step + 1, 0) if size >= least else np.zeros_like(frames)
        first, *others = counts
        for other in others:
            unequal = np.nonzero(counts[first] != counts[other])[0]
            if len(unequal):
                index = int(indices[unequal[0]])
                seq_tag = tag(index) if tag else None
                name = f"number {index}" if seq_tag is None else seq_tag
                raise wrong_sequence(
                    seq_tag,
                    f"chunking={self.chunking!r}: sequence {name!r} has {lengths[first][index]} frames in stream "
                    f"{first!r} and {lengths[other][index]} in {other!r}, which gives {counts[first][unequal[0]]} and "
                    f"{counts[other][unequal[0]]} chunks; expected the same number",
                )
        number = counts[first]
        entries = np.repeat(indices, number)
        within = np.arange(len(entries)) - np.repeat(np.cumsum(number) - number, number)
        starts, ends = {}, {}
        for stream, (size, step) in _chunked_streams(chunking, lengths).items():
            starts[stream] = within * step
            ends[stream] = np.minimum(starts[stream] + size, lengths[stream][entries])
        return entries, starts, ends, Report(num_without_chunk=int(np.count_nonzero(number == 0)))


class Filler:
    """Fills batches in one pass, sequence after sequence.

    For sources whose lengths only come with the data, and for limits that change within an epoch.
    """

    def __init__(self, batching: Batching, epoch: int = 1, num_seqs: int | None = None) -> None:
        self.batching = batching
        self.batch_size = by_name(batching.batch_size)
        self.max_seqs = by_name(batching.max_seqs)
        self.epoch = epoch
        self.num_seqs = num_seqs
        self.seq_idx = 0
        """Sequences seen so far."""
        self.size = 0
        """Sequences in the current batch."""
        self.longest: dict[str, int] = {}
        self.total: dict[str, int] = {}

    def starts_new_batch(self, lengths: Mapping[str, int]) -> bool:
        """Take one more sequence: True if it is the first of a batch (also of the very first one)."""
        batch_size = _by_stream(self._limit(self.batch_size), lengths)
        packed = _by_stream(self.batching.packed_batch_size, lengths)
        max_seqs = self._limit(self.max_seqs)
        full = self.size >= (UNLIMITED if max_seqs in (None, -1) else max_seqs)
        longest = {name: max(self.longest.get(name, 0), length) for name, length in lengths.items()}
        full = full or any(longest[name] * (self.size + 1) > limit for name, limit in batch_size.items())
        full = full or any(self.total.get(name, 0) + lengths[name] > limit for name, limit in packed.items())
        starts = full or self.size == 0
        if starts:
            self.size, self.total, longest = 0, {}, dict(lengths)
        self.size += 1
        self.longest = longest
        self.total = {name: self.total.get(name, 0) + length for name, length in lengths.items()}
        self.seq_idx += 1
        return starts

    def is_too_long(self, lengths: Mapping[str, int]) -> bool:
        """Whether even alone this sequence is more than `batch_size`."""
        batch_size = _by_stream(self._limit(self.batch_size), lengths)
        return any(lengths[name] > limit for name, limit in batch_size.items())

    def _limit(self, limit: Any) -> Any:
        if not callable(limit):
            return limit
        done = (self.seq_idx + 1) / self.num_seqs if self.num_seqs else 0.0
        return limit(epoch=self.epoch, seq_idx=self.seq_idx, epoch_continuous=self.epoch - 1 + done)


def greedy_offsets(most_seqs: np.ndarray) -> np.ndarray:
    """Where each batch begins, and the end, (num_batches + 1,).

    Args:
        most_seqs: (n,) the most sequences that may be in a batch with each one. 0 counts as 1: alone.
    """
    offsets = [0]
    size, most = 0, UNLIMITED
    for start in range(0, len(most_seqs), BLOCK):  # in blocks: a list of all numbers would take ten times the memory
        for position, own in enumerate(most_seqs[start : start + BLOCK].tolist(), start):
            most = min(own, most)
            if size >= most and size:
                offsets.append(position)
                size, most = 1, own
            else:
                size += 1
    if len(most_seqs):
        offsets.append(len(most_seqs))
    return np.asarray(offsets, np.int64)


def parse_chunking(chunking: Any) -> tuple[PerStream, PerStream] | None:
    """(size, step) of a `chunking` option.

    Raises:
        ValueError: not one of the forms.
    """
    if chunking in (None, 0, "0", ""):
        return None
    size, step = chunking, chunking
    if isinstance(chunking, str):
        match = re.fullmatch(r"(\d+)(?::(\d+))?", chunking)
        size, step = (int(match[1]), int(match[2] or match[1])) if match else (None, None)
    elif isinstance(chunking, Sequence) and len(chunking) == 2:
        size, step = chunking
    same = not isinstance(size, Mapping) or (isinstance(step, Mapping) and size.keys() == step.keys())
    if (
        not all(isinstance(v, int) and v > 0 for v in (*_values(size), *_values(step)))
        or not same
        or None in (size, step)
    ):
        raise ValueError(
            f'chunking={chunking!r}: expected size, "size:step" or [size, step] in frames, numbers from 1, '
            "or both by stream: [{data: 60}, {data: 30}]"
        )
    return size, step


def _chunked_streams(chunking: tuple[PerStream, PerStream], lengths: Lengths) -> dict[str, tuple[int, int]]:
    sizes, steps = (_by_stream(value, lengths) for value in chunking)
    return {name: (size, steps[name]) for name, size in sizes.items()}


def _values(option: Any) -> list[Any]:
    if option is None or callable(option):
        return []
    return list(option.values()) if isinstance(option, Mapping) else [option]


def _are_pairs(buckets: Any) -> bool:
    if not isinstance(buckets, Sequence) or not buckets:
        return False
    pairs = [pair for pair in buckets if isinstance(pair, Sequence) and len(pair) == 2]
    return len(pairs) == len(buckets) and all(type(value) is int and value > 0 for pair in pairs for value in pair)


def _by_stream(option: PerStream, lengths: Mapping[str, Any], option_name: str = "limit") -> Mapping[str, int]:
    """One number per stream; a single number holds for all of them.

    Raises:
        ValueError: a stream that does not exist.
    """
    if option is None:
        return {}
    if not isinstance(option, Mapping):
        return dict.fromkeys(lengths, option)
    for name in option:
        if name not in lengths:
            known = f"there is: {', '.join(lengths)}"
            raise ValueError(f"{option_name}={dict(option)}: no stream {name!r} with a time axis ({known})")
    return option
