"""The batches of an epoch, as arrays of indices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from operator import add

import numpy as np


@dataclass(frozen=True)
class Piece:
    """The entries of one batch."""

    indices: np.ndarray
    """(n,) sequences of the corpus."""
    starts: Mapping[str, np.ndarray] = field(default_factory=dict)
    ends: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Stream to (n,) frames: the chunk of each entry; a stream that is not there is used whole."""


@dataclass(frozen=True)
class Report:
    """What happened to the sequences of an epoch on their way to the batches."""

    num_filtered: int = 0
    """Sequences shorter than `min_seq_length` or longer than `max_seq_length`."""
    num_too_long: int = 0
    """Sequences longer than `batch_size`: each is a batch alone, or was skipped."""
    num_skipped: int = 0
    """Those of them that were skipped (`on_too_long: skip`)."""
    num_without_chunk: int = 0
    """Sequences shorter than `min_chunk_size`."""
    num_split: int = 0
    """Batches cut in two so that every rank gets the same number."""
    num_left_out: int = 0
    """Batches no rank gets, because even cut in two they do not come out even."""

    def __add__(self, other: Report) -> Report:
        return Report(*map(add, astuple(self), astuple(other)))

    def warnings(self) -> list[str]:
        """One line for each thing a user should know."""
        lines = {
            "num_filtered": "sequences left out by min_seq_length / max_seq_length",
            "num_too_long": "sequences longer than batch_size (on_too_long)",
            "num_skipped": "of them skipped",
            "num_without_chunk": "sequences shorter than min_chunk_size left out",
            "num_split": "batches cut in two, so that every rank gets the same number",
            "num_left_out": "batches left out, because the ranks cannot get the same number",
        }
        return [f"{getattr(self, name)} {text}" for name, text in lines.items() if getattr(self, name)]


@dataclass(frozen=True)
class Batches:
    """All batches of an epoch, as arrays: batch i has the entries offsets[i] .. offsets[i+1]-1."""

    indices: np.ndarray
    """(M,) int64 sequence of every entry."""
    offsets: np.ndarray
    """(num_batches + 1,) int64."""
    starts: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Chunking: stream to (M,) first frame of every entry."""
    ends: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Chunking: stream to (M,) the frame after the last."""
    report: Report = Report()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, batch: int) -> Piece:
        if not 0 <= batch < len(self):
            raise IndexError(f"batch {batch} of {len(self)}")
        part = slice(int(self.offsets[batch]), int(self.offsets[batch + 1]))
        return Piece(
            self.indices[part],
            {name: values[part] for name, values in self.starts.items()},
            {name: values[part] for name, values in self.ends.items()},
        )

    def __iter__(self) -> Iterator[Piece]:
        return (self[batch] for batch in range(len(self)))

    def sizes(self) -> np.ndarray:
        """Sequences in every batch, (num_batches,)."""
        return np.diff(self.offsets)

    def select(self, batches: np.ndarray) -> Batches:
        """These batches, in this order."""
        sizes = self.sizes()[batches]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        entries = np.repeat(self.offsets[:-1][batches] - offsets[:-1], sizes) + np.arange(offsets[-1])
        return replace(
            self,
            indices=self.indices[entries],
            offsets=offsets,
            starts={name: values[entries] for name, values in self.starts.items()},
            ends={name: values[entries] for name, values in self.ends.items()},
        )

    def shuffled(self, rng: np.random.RandomState, block: int | None = None) -> Batches:
        """The same batches in another order; `block`: only within every `block` batches in a row."""
        order = np.arange(len(self))
        for start in range(0, len(self), block or max(len(self), 1)):
            rng.shuffle(order[start : start + (block or len(self))])
        return self.select(order)

    def deal(self, rank: int, world_size: int, equal: bool = True) -> Batches:
        """The batches of one rank: every world_size-th one, each batch to one rank.

        Args:
            equal: the same number for every rank.

        If they don't come out even, the batches with the most sequences are cut in two. Only if there are not enough of
        more than one sequence, the last batches are left out (`report.num_left_out`).
        """
        if world_size == 1:
            return self
        if not equal:
            return self.select(np.arange(rank, len(self), world_size))
        dealt = self._cut_even(world_size)
        left_out = len(dealt) % world_size
        dealt = replace(dealt, report=replace(dealt.report, num_left_out=left_out))
        return dealt.select(np.arange(rank, len(dealt) - left_out, world_size))

    def deal_rest(self, done: Sequence[Sequence[int]], rank: int, world_size: int) -> Batches:
        """`deal` in the middle of an epoch that was begun with other numbers of ranks.

        Args:
            done: pairs of a number of ranks, and how many batches each rank had done, since the epoch's begin, when
                that number ended.

        Returns:
            An empty batch for each one that is done, so that the numbers go on; then this rank's part of the rest.
        """
        rest, begun = self, 0
        for num_ranks, until in done:
            cut = rest._cut_even(num_ranks)
            rest, begun = cut.select(np.arange(num_ranks * (until - begun), len(cut))), until
        dealt = rest.deal(rank, world_size)
        return replace(dealt, offsets=np.concatenate([np.zeros(begun, np.int64), dealt.offsets]))

    def _cut_even(self, world_size: int) -> Batches:
        """As many batches cut in two as are missing to a multiple of `world_size`; none, if that is not possible."""
        missing = -len(self) % world_size
        sizes = self.sizes()
        if np.count_nonzero(sizes > 1) < missing:
            return self
        cut = np.sort(np.argsort(-sizes, kind="stable")[:missing])
        middle = self.offsets[cut] + (sizes[cut] + 1) // 2
        report = replace(self.report, num_split=missing)
        return replace(self, offsets=np.insert(self.offsets, cut + 1, middle), report=report)

    def lengths(self, lengths: np.ndarray, stream: str) -> np.ndarray:
        """Frames of every entry in a stream, (M,)."""
        if stream in self.starts:
            return self.ends[stream] - self.starts[stream]
        return lengths[self.indices]

    def num_frames(self, lengths: np.ndarray, stream: str) -> tuple[int, int]:
        """Frames of a stream in the epoch: (real ones, with padding)."""
        if len(self) == 0:
            return 0, 0
        return int(self.lengths(lengths, stream).sum()), int(self.padded_frames(lengths, stream).sum())

    def padded_frames(self, lengths: np.ndarray, stream: str) -> np.ndarray:
        """Frames of a stream in every batch, padding included, (num_batches,); there must be at least one batch."""
        longest = np.maximum.reduceat(self.lengths(lengths, stream), self.offsets[:-1])
        return longest * self.sizes()
