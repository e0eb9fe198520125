"""Batches from a source that only says what comes next."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.data.batches import Report
from returnn_hydra.data.batching import Batching, Filler
from returnn_hydra.data.collate import check_specs, collate
from returnn_hydra.data.dataset import DataError, Examples, wrong_sequence
from returnn_hydra.data.reading import ahead, from_workers, own_generator
from returnn_hydra.data.streaming import Example, StreamingDataset

Grouping = Callable[[Iterator[Example], int], Iterable[list[Example]]]
"""The sequences as they come, and the epoch, to the sequences of every batch."""


@dataclass
class Counts:
    """What came out of an epoch so far."""

    num_batches: int = 0
    num_seqs: int = 0
    num_frames: int = 0
    num_padded_frames: int = 0
    report: Report = field(default_factory=Report)
    """Complete when the epoch is."""


class StreamLoader:
    """The batches of every epoch of a streaming source: Loader's face, but nothing is known before it is read.

    Going on in the middle of an epoch reads and drops what was before. With several workers each one makes batches out
    of its share of the sequences, and they take turns: every sequence comes once, in other batches than without
    workers.

    Raises:
        DataError: the source has not what `specs` says.
        ValueError: an option that needs to know the lengths before.
    """

    def __init__(
        self,
        dataset: StreamingDataset,
        specs: Mapping[str, TensorSpec] | None = None,
        batching: Batching | None = None,
        *,
        num_workers: int = 0,
        prefetch: int = 4,
        pin_memory: bool = False,
        rank: int = 0,
        world_size: int = 1,
        check_finite: bool = False,
        seed: int = 0,
        grouping: Grouping | None = None,
    ) -> None:
        self.dataset = dataset
        self.specs = dict(specs if specs is not None else dataset.streams)
        self.batching = batching or Batching()
        self.num_workers = num_workers
        self.prefetch = prefetch
        self.pin_memory = pin_memory
        self.rank = rank
        self.world_size = world_size
        self.check_finite = check_finite
        self.seed = seed
        self.grouping = grouping
        self._counts: dict[int, Counts] = {}
        if self.batching.buckets:
            raise ValueError(f"buckets needs all lengths, which {type(dataset).__name__} does not know")
        if self.batching.shuffle_batches is True:
            raise ValueError(
                f"shuffle_batches=true needs all batches at once, which {type(dataset).__name__} does not give;"
                " a number of batches shuffles within blocks"
            )
        check_specs(self.specs, dataset.streams)
        self.batching.check_streams([name for name, spec in self.specs.items() if spec.has_time])

    def num_batches(self, epoch: int) -> int | None:
        """Not known before the epoch has been read."""
        return None

    def largest_batch(self, epoch: int) -> int | None:
        """Not known before the epoch has been read."""
        return None

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (counted from 1), beginning at batch number `start`."""
        former = BatchFormer(
            self.dataset,
            self.specs,
            self.batching,
            self.check_finite,
            self.rank,
            self.world_size,
            self.seed,
            self.grouping,
        )
        if self.num_workers:
            loader: DataLoader = DataLoader(
                _Share(former, epoch),
                batch_size=None,
                num_workers=self.num_workers,
                prefetch_factor=max(self.prefetch, 1),
                pin_memory=self.pin_memory,
                generator=own_generator(epoch),
            )
            batches = from_workers(loader, lambda done: f"epoch {epoch}")
        else:
            batches = ahead(former.batches(epoch), self.prefetch, self.pin_memory)
        return self._counted(batches, epoch, start, former)

    def _counted(
        self, batches: Iterator[Batch | Report], epoch: int, start: int, former: BatchFormer
    ) -> Iterator[Batch]:
        counts = self._counts[epoch] = Counts()
        main = next((name for name in ("data", *self.specs) if name in self.specs and self.specs[name].has_time), None)
        try:
            for batch in batches:
                if isinstance(batch, Report):  # the last word of a worker
                    counts.report += batch
                    continue
                counts.num_batches += 1
                counts.num_seqs += batch.num_seqs
                if main is not None:
                    counts.num_frames += int(batch.lengths[main].sum())
                    counts.num_padded_frames += int(batch.lengths[main].max()) * batch.num_seqs
                if counts.num_batches > start:
                    yield batch
            counts.report += Report(**former.left_out)
        finally:
            batches.close()  # type: ignore[attr-defined]

    def statistics(self, epoch: int) -> dict[str, Any]:
        """Of what was read of this epoch: batches, sequences, frames, padding; at its end also what was left out."""
        counts = self._counts.get(epoch, Counts())
        padded = counts.num_padded_frames
        report = counts.report
        return {
            "num_batches": counts.num_batches,
            "num_seqs": counts.num_seqs,
            "num_frames": counts.num_frames,
            "padding_fraction": round(1 - counts.num_frames / padded, 6) if padded else 0.0,
            "num_filtered": report.num_filtered,
            "num_too_long": report.num_too_long,
            "num_skipped": report.num_skipped,
            "warnings": report.warnings(),
        }


@dataclass
class BatchFormer:
    """Fills batches with what a source gives to one rank."""

    dataset: StreamingDataset
    specs: Mapping[str, TensorSpec]
    batching: Batching
    check_finite: bool
    rank: int
    num_ranks: int
    seed: int = 0
    grouping: Grouping | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    """What happened to sequences on their way to the batches, by the names in Report."""

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The padded batches.

        Raises:
            DataError: also in place of any other error of the source.
        """
        last: str | None = None
        try:
            for group in self.shuffled(self.groups(epoch), epoch):
                last = group[-1].seq_tag
                yield self.collate(group, epoch)
        except DataError as error:
            error.add_file(self.dataset.file_of)
            raise
        except Exception as error:
            after = f"after sequence {last!r}" if last is not None else "before the first batch"
            raise DataError(f"{type(error).__name__}: {error}, {after} of {type(self.dataset).__name__}") from error

    def collate(self, group: list[Example], epoch: int) -> Batch:
        names = [name for name in self.specs if name in group[0].streams]
        streams = {name: [example.streams[name] for example in group] for name in names}
        examples = Examples([example.seq_tag for example in group], streams)
        return collate(examples, self.specs, epoch, check_finite=self.check_finite)

    def groups(self, epoch: int) -> Iterator[list[Example]]:
        """The sequences (or chunks) of every batch."""
        source = self.dataset.iterate(epoch, self.rank, self.num_ranks)
        pieces = itertools.chain.from_iterable(map(self.pieces, source))
        if self.grouping is not None:
            yield from filter(None, self.grouping(pieces, epoch))
            return
        filler = Filler(self.batching, epoch)
        group: list[Example] = []
        for example in pieces:
            lengths = self.lengths(example)
            if filler.is_too_long(lengths):
                if self.batching.on_too_long == "error":
                    text = f"is longer ({lengths}) than a batch may be ({self.batching.batch_size})"
                    raise wrong_sequence(example.seq_tag, f"sequence {example.seq_tag!r} {text}, and on_too_long=error")
                self.left_out["num_too_long"] += 1
                if self.batching.on_too_long == "skip":
                    self.left_out["num_skipped"] += 1
                    continue
            if filler.starts_new_batch(lengths) and group:
                yield group
                group = []
            group.append(example)
        if group:
            yield group

    def shuffled(self, groups: Iterator[list[Example]], epoch: int) -> Iterator[list[Example]]:
        """The same batches, shuffled within every `shuffle_batches` in a row, which are held in memory."""
        block = int(self.batching.shuffle_batches)
        if not block:
            yield from groups
            return
        rng = np.random.RandomState([self.seed % 2**32, epoch, 1, self.rank])
        while batches := list(itertools.islice(groups, block)):
            for index in rng.permutation(len(batches)):
                yield batches[index]

    def lengths(self, example: Example) -> dict[str, int]:
        """Frames by stream."""
        lengths = {}
        for name, spec in self.specs.items():
            if spec.time_axis is not None:
                if name not in example.streams:
                    raise DataError(f"sequence {example.seq_tag!r} has no stream {name!r}")
                lengths[name] = int(example.streams[name].shape[spec.time_axis])
        return lengths

    def pieces(self, example: Example) -> list[Example]:
        """The sequence; nothing if it is filtered out; or its chunks."""
        lengths = {name: np.array([length]) for name, length in self.lengths(example).items()}
        keep = self.batching.passes(lengths)
        if keep is not None and not keep[0]:
            self.left_out["num_filtered"] += 1
            return []
        if self.batching.chunking is None:
            return [example]
        chunks = Batching(chunking=self.batching.chunking, min_chunk_size=self.batching.min_chunk_size)
        made = chunks.make(np.zeros(1, np.int64), lengths, tag=lambda _: example.seq_tag)
        self.left_out["num_without_chunk"] += made.report.num_without_chunk
        pieces = []
        for i in range(len(made.indices)):
            cut = {name: example.streams[name][made.starts[name][i] : made.ends[name][i]] for name in made.starts}
            pieces.append(Example(example.seq_tag, {**example.streams, **cut}))
        return pieces


class _Share(IterableDataset):
    """The batches of one worker: of the sequences that belong to it."""

    def __init__(self, former: BatchFormer, epoch: int) -> None:
        self.former = former
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch | Report | DataError]:
        worker = get_worker_info()
        assert worker is not None
        former = self.former
        share = BatchFormer(
            former.dataset,
            former.specs,
            former.batching,
            former.check_finite,
            former.rank * worker.num_workers + worker.id,
            former.num_ranks * worker.num_workers,
            former.seed,
            former.grouping,
        )
        try:
            yield from share.batches(self.epoch)
            yield Report(**share.left_out)
        except DataError as error:
            yield DataError(*error.args)
