"""From a corpus to the batches of an epoch: order, batches, reading ahead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.data.batches import Batches
from returnn_hydra.data.batching import Batching
from returnn_hydra.data.collate import check_specs
from returnn_hydra.data.dataset import DataError, Dataset
from returnn_hydra.data.memory import keep_freed_memory
from returnn_hydra.data.order import SeqOrder
from returnn_hydra.data.reading import BatchReader, WorkList, ahead, read_in_workers

__all__ = ["Loader"]


class Loader:
    """The batches of every epoch of a data set.

    The batches of an epoch are computed ahead, as arrays of indices, from nothing but the arguments and the epoch:
    going on in the middle of an epoch is a jump.

    Raises:
        DataError: the data set has not what `specs` says.
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        dataset: Dataset,
        specs: Mapping[str, TensorSpec] | None = None,
        order: SeqOrder | None = None,
        batching: Batching | None = None,
        *,
        num_workers: int = 0,
        prefetch: int = 4,
        pin_memory: bool = False,
        rank: int = 0,
        world_size: int = 1,
        equal_batches: bool = True,
        check_finite: bool = False,
        unique_seq_tags: bool = False,
    ) -> None:
        """
        Args:
            specs: the streams to use (extern_data); default: all that the data set has.
            num_workers: processes that read; 0: this one, in a thread. Where reading is a block copy (see
                `Dataset.is_block_copy`) this one does it too: handing batches from process to process costs more.
            prefetch: batches that are read ahead (by each worker); 0: none.
            pin_memory: batches in page-locked memory, for a GPU.
            rank, world_size: with several processes, each gets its own batches.
            equal_batches: all of them get the same number.
            check_finite: NaN or infinity in the data is an error.
            unique_seq_tags: of sequences with the same tag only the first of the epoch's order is used.
        """
        if num_workers < 0 or prefetch < 0:
            raise ValueError(f"num_workers={num_workers}, prefetch={prefetch}: expected numbers from 0")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank}: expected 0 to world_size-1={world_size - 1}")
        self.specs = dict(specs if specs is not None else dataset.streams)
        self.order = order or SeqOrder()
        self.batching = batching or Batching()
        self.num_workers = num_workers
        self.prefetch = prefetch
        self.pin_memory = pin_memory
        self.rank = rank
        self.world_size = world_size
        self.equal_batches = equal_batches
        self.check_finite = check_finite
        self.unique_seq_tags = unique_seq_tags
        self._begun: tuple[int, Sequence[Sequence[int]]] = (0, ())
        check_specs(self.specs, dataset.streams)
        self.batching.check_streams([name for name, spec in self.specs.items() if spec.has_time])
        keep_freed_memory()
        self.dataset = dataset.with_streams(list(self.specs))
        if num_workers and not self.dataset.is_block_copy:
            self.dataset.share_memory()
        self._plan = lru_cache(maxsize=2)(self._make_plan)
        self._dealt = lru_cache(maxsize=2)(self._deal)
        self._shares = lru_cache(maxsize=2)(self._make_shares)

    def num_batches(self, epoch: int) -> int:
        """Batches of this rank in the epoch (counted from 1)."""
        return len(self.batches(epoch))

    def part_done(self, epoch: int, batch: int) -> float:
        """The part of the epoch's sequences that comes before this batch: 0 .. 1, the same on all ranks."""
        return float(self._shares(epoch)[batch])

    def batches(self, epoch: int) -> Batches:
        """The sequences of every batch of this rank in the epoch."""
        return self._dealt(epoch, self.rank)

    def go_on(self, epoch: int, done: Sequence[Sequence[int]]) -> None:
        """This epoch was begun with other numbers of ranks: only what they left is dealt (see Batches.deal_rest)."""
        self._begun = (epoch, done)
        self._dealt.cache_clear()
        self._shares.cache_clear()

    def _deal(self, epoch: int, rank: int) -> Batches:
        begun, done = self._begun
        if epoch == begun and done:
            return self._plan(epoch).deal_rest(done, rank, self.world_size)
        return self._plan(epoch).deal(rank, self.world_size, self.equal_batches)

    def _make_shares(self, epoch: int) -> np.ndarray:
        """(num_batches + 1,) part of the sequences in all ranks' batches before each batch."""
        sizes = np.sum([self._deal(epoch, rank).sizes() for rank in range(self.world_size)], axis=0)
        begun, done = self._begun
        before = len(self._plan(epoch).indices) - sizes.sum() if epoch == begun and done else 0
        return (np.concatenate([[0], np.cumsum(sizes)]) + before) / max(sizes.sum() + before, 1)

    def largest_batch(self, epoch: int) -> int | None:
        """The number of this rank's batch with the most frames, all streams together and with padding."""
        batches = self.batches(epoch)
        if len(batches) == 0:
            return None
        lengths = self._lengths(self.dataset.at_epoch(epoch))
        sizes = [batches.padded_frames(values, name) for name, values in lengths.items()] or [batches.sizes()]
        return int(np.argmax(np.sum(sizes, axis=0)))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (counted from 1), beginning at batch number `start`.

        Closing the iterator early ends its thread or its processes.

        Raises:
            DataError: a sequence can't be read or is not what its spec says; a worker process died.
        """
        work = WorkList(epoch, self.batches(epoch), start)
        reader = BatchReader(self.dataset, self.specs, self.check_finite)
        if self.num_workers and not self.dataset.is_block_copy:
            return read_in_workers(reader, work, self.num_workers, self.prefetch, self.pin_memory)
        return ahead(map(reader.read, work), self.prefetch, self.pin_memory)

    def statistics(self, epoch: int) -> dict[str, Any]:
        """Of the epoch, all ranks together: numbers of batches, sequences, frames, padding, what was left out."""
        batches = self._plan(epoch)
        lengths = self._lengths(self.dataset.at_epoch(epoch))
        main = next(iter(lengths), None)
        real, padded = batches.num_frames(lengths[main], main) if main else (len(batches.indices),) * 2
        report = self.batches(epoch).report
        return {
            "num_batches": len(batches),
            "num_seqs": len(np.unique(batches.indices)),
            "num_frames": real,
            "padding_fraction": round(1 - real / padded, 6) if padded else 0.0,
            "num_filtered": report.num_filtered,
            "num_too_long": report.num_too_long,
            "num_skipped": report.num_skipped,
            "num_left_out": report.num_left_out,
            "warnings": report.warnings(),
        }

    def _lengths(self, dataset: Dataset) -> dict[str, np.ndarray]:
        """Frames of every sequence in every used stream with a time axis, the stream `data` first."""
        names = sorted((name for name, spec in self.specs.items() if spec.has_time), key=lambda name: name != "data")
        lengths = {}
        for name in names:
            values = dataset.seq_lengths(name)
            if values is None:
                raise DataError(f"stream {name!r}: {type(dataset).__name__} does not know the lengths before reading")
            lengths[name] = values
        return lengths

    def _make_plan(self, epoch: int) -> Batches:
        """The epoch's batches, of all ranks."""
        dataset = self.dataset.at_epoch(epoch)
        lengths = self._lengths(dataset)
        num_seqs = len(dataset)
        keep = self.batching.passes(lengths)
        sort_by: np.ndarray | int = num_seqs
        if self.order.needs_lengths(epoch, num_seqs):
            known = dataset.order_lengths()
            sort_by = num_seqs if known is None else known
        tag_ids = None
        if self.unique_seq_tags:
            tag_ids = np.unique(dataset.seq_tags(np.arange(num_seqs)), return_inverse=True)[1]
        indices = self.order.indices(epoch, sort_by, keep, tag_ids)
        rng = self.order.batch_rng(epoch)
        try:
            batches = self.batching.make(indices, lengths, epoch, lambda index: dataset.seq_tags([index])[0], rng)
        except DataError as error:
            error.add_file(dataset.file_of)
            raise
        if keep is not None:
            report = replace(batches.report, num_filtered=int(np.count_nonzero(~keep)))
            batches = replace(batches, report=report)
        block = self.batching.shuffle_batches
        if block or self.order.shuffles_batches(epoch, num_seqs):
            batches = batches.shuffled(rng, None if isinstance(block, bool) else block)
        return batches
