"""In which order the sequences of a corpus come, epoch by epoch: a pure function of the seed and the epoch.

Every random draw is numpy's legacy `RandomState`, whose streams never change between numpy versions, in the sequence of
calls that RETURNN makes: the same seed gives the same order there and here, index by index.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import RandomState

SEED_STRIDE = 1_000_003
"""Distance of the random streams of two experiment seeds, so that seed 2 is not seed 1 one epoch later."""

FORMS = {
    "default": "default",
    "reverse": "reverse",
    "default_every_n": "default_every_n:<n>",
    "sorted": "sorted",
    "sorted_reverse": "sorted_reverse",
    "random": "random or random:<seed>",
    "random_sample": "random_sample[:<epochs to keep it>]",
    "laplace": "laplace:<n_buckets> or laplace:.<n_sequences>, with [:<epochs to keep it>]",
    "sort_bin_shuffle": "sort_bin_shuffle:<n_bins> or :.<n_sequences>, with [:<epochs to keep it>]",
    "sort_bin_shuffle_x2": "sort_bin_shuffle_x2:<n_bins> or :.<n_sequences>, with [:<epochs to keep it>]",
    "bucket": "bucket, bucket:<n_buckets> or bucket:.<n_sequences>",
}
BINNED = ("laplace", "sort_bin_shuffle", "sort_bin_shuffle_x2", "bucket")


@dataclass(frozen=True)
class Ordering:
    """A parsed `seq_ordering`."""

    mode: str
    number: int | None = None
    """`random`: its argument; `default_every_n`: n; binned modes: number of bins."""
    bin_size: int | None = None
    """Binned modes: sequences per bin, instead of `number`."""
    keep_epochs: int = 1
    """A random order is kept for this many passes over the corpus."""

    def num_bins(self, num_seqs: int) -> int:
        """How many bins the corpus is cut into."""
        fewest = 1 if self.mode == "bucket" else 2
        if self.bin_size is not None:
            return max(num_seqs // self.bin_size, fewest)
        return fewest if self.number is None else self.number


def parse_ordering(text: str) -> Ordering:
    """Read a `seq_ordering` such as "laplace:.200".

    Raises:
        ValueError: unknown mode (names the nearest one) or a wrong argument.
    """
    mode, *arguments = text.split(":")
    if mode not in FORMS:
        raise ValueError(f"seq_ordering={text!r}: unknown mode{_suggestion(text)}; there is: {', '.join(FORMS)}")
    most = 2 if mode in ("laplace", "sort_bin_shuffle", "sort_bin_shuffle_x2") else 1
    if mode in ("default", "reverse", "sorted", "sorted_reverse"):
        most = 0
    if len(arguments) > most or (mode == "default_every_n" and not arguments):
        raise ValueError(f"seq_ordering={text!r}: expected {FORMS[mode]}")
    if mode in BINNED:
        spec = arguments[0] if arguments else ""
        sized = spec.startswith(".")
        value = _positive(text, mode, spec.removeprefix(".")) if spec else None
        keep = _positive(text, mode, arguments[1]) if len(arguments) > 1 else 1
        return Ordering(mode, None if sized else value, value if sized else None, keep)
    if mode == "random_sample":
        return Ordering(mode, keep_epochs=_positive(text, mode, arguments[0]) if arguments else 1)
    if mode == "random" and arguments:
        if not re.fullmatch(r"\d+", arguments[0]) or int(arguments[0]) >= 2**32:
            raise ValueError(f"seq_ordering={text!r}: the seed must be a number from 0 to 2**32-1")
        return Ordering(mode, int(arguments[0]))
    return Ordering(mode, _positive(text, mode, arguments[0]) if arguments else None)


def _positive(text: str, mode: str, value: str) -> int:
    if not re.fullmatch(r"\d+", value) or int(value) < 1:
        raise ValueError(f"seq_ordering={text!r}: {value!r} must be a whole number from 1; expected {FORMS[mode]}")
    return int(value)


def _suggestion(text: str) -> str:
    """The nearest right spelling, with the argument that was given: `laplace.1000` -> `laplace:.1000`."""
    match = re.fullmatch(r"(.*?)[:=_\- ]?(\.?\d+)?", text)
    name, argument = (match[1], match[2]) if match else (text, None)
    nearest = difflib.get_close_matches(name, FORMS, n=1, cutoff=0.5)
    if not nearest:
        return ""
    return f", did you mean {nearest[0]}{':' + argument if argument else ''}?"


@dataclass(frozen=True)
class SeqOrder:
    """The sequences of an epoch, in their order.

    One pass over the corpus is split into `partition_epoch` epochs. Random modes draw from `RandomState(pass number)`
    by default (RETURNN's rule), so that every pass has another order.

    `random:<seed>` is one fixed permutation, drawn with the given seed, the same in every epoch. In RETURNN
    `random:<n>` keeps a permutation for n passes instead: that is `keep_epochs=n`, or `random_argument="epochs"` where
    the text comes out of a RETURNN config.

    Raises:
        ValueError: an option that does not exist or that contradicts another.
    """

    seq_ordering: str | Callable[..., str] = "default"
    """The mode, or a function of (epoch, full_epoch, num_seqs: those it takes) that returns one."""
    seed: int = 1
    """The experiment's seed; 1 gives RETURNN's orders."""
    partition_epoch: int = 1
    """Parts of one pass over the corpus; the first parts are one sequence longer if it does not come out even."""
    repeat_epoch: int = 1
    """Passes over the corpus in one epoch."""
    keep_epochs: int = 1
    """A random order is kept for this many passes over the corpus."""
    fixed_random_seed: int | None = None
    """The seed of the random modes, whatever the epoch."""
    random_seed_offset: int | None = None
    """RETURNN's: added to the number of the pass; default: from `seed`."""
    random_argument: str = "seed"
    """What the number in `random:<number>` is: "seed", or "epochs" as in RETURNN."""
    num_shards: int = 1
    shard_index: int = 0
    """RETURNN's sharding: every part is split once more. (Loader deals whole batches to ranks instead.)"""

    def __post_init__(self) -> None:
        for name in ("partition_epoch", "repeat_epoch", "keep_epochs", "num_shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.partition_epoch > 1 and self.repeat_epoch > 1:
            raise ValueError(
                f"partition_epoch={self.partition_epoch} and repeat_epoch={self.repeat_epoch}: only one can be used"
            )
        if not 0 <= self.shard_index < self.num_shards:
            raise ValueError(f"shard_index={self.shard_index}: must be from 0 to num_shards-1={self.num_shards - 1}")
        if self.random_argument not in ("seed", "epochs"):
            raise ValueError(f'random_argument={self.random_argument!r}: expected "seed" or "epochs"')
        if isinstance(self.seq_ordering, str):
            parse_ordering(self.seq_ordering)

    def full_epoch(self, epoch: int) -> int:
        """The pass over the corpus (counted from 1) that this epoch belongs to."""
        return (epoch - 1) // self.partition_epoch + 1

    def ordering(self, epoch: int, num_seqs: int) -> Ordering:
        """The mode of this epoch."""
        text = self.seq_ordering
        if callable(text):
            facts = {"epoch": epoch, "full_epoch": self.full_epoch(epoch), "num_seqs": num_seqs}
            parameters = inspect.signature(text).parameters.values()
            takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
            names = {parameter.name for parameter in parameters}
            text = text(**{name: value for name, value in facts.items() if takes_all or name in names})
            if not isinstance(text, str):
                raise ValueError(
                    f"seq_ordering: the function returned {text!r} for epoch {epoch}, expected a mode as text"
                )
        return parse_ordering(text)

    def needs_lengths(self, epoch: int, num_seqs: int) -> bool:
        """Whether this epoch's order looks at the lengths."""
        return self.ordering(epoch, num_seqs).mode in (*BINNED, "sorted", "sorted_reverse")

    def shuffles_batches(self, epoch: int, num_seqs: int) -> bool:
        """`bucket`: batches of like lengths, which then must be shuffled."""
        return self.ordering(epoch, num_seqs).mode == "bucket"

    def random_seed(self, epoch: int, ordering: Ordering) -> int:
        """The seed of this epoch's random draws."""
        keep = ordering.keep_epochs * self.keep_epochs
        if ordering.mode == "random" and ordering.number is not None:
            if self.random_argument == "seed":
                return ordering.number
            keep *= max(ordering.number, 1)
        if self.fixed_random_seed is not None:
            return self.fixed_random_seed
        offset = self.random_seed_offset
        if offset is None:
            offset = (self.seed - 1) * SEED_STRIDE
        return ((self.full_epoch(epoch) - 1) // keep + 1 + offset) % 2**32

    def indices(
        self,
        epoch: int,
        lengths: np.ndarray | int,
        keep: np.ndarray | None = None,
        tag_ids: np.ndarray | None = None,
    ) -> np.ndarray:
        """The sequences of this epoch (counted from 1), (n,) int64.

        Args:
            lengths: (N,) what the modes by length sort by; or only N for modes that don't.
            keep: (N,) bool, the sequences that pass the filters; applied before the pass is split into epochs.
            tag_ids: (N,) equal numbers for sequences of the same tag: only the first of them in this order stays.

        Raises:
            ValueError: the mode needs lengths and there are none.
        """
        num_seqs = lengths if isinstance(lengths, int) else len(lengths)
        ordering = self.ordering(epoch, num_seqs)
        if isinstance(lengths, int) and self.needs_lengths(epoch, num_seqs):
            raise ValueError(
                f"seq_ordering={self.seq_ordering!r} needs the lengths of the sequences, which are not known"
            )
        rng = RandomState(self.random_seed(epoch, ordering))
        by_length = np.asarray(lengths)
        order = _order(ordering, num_seqs, by_length, rng)
        if keep is not None:
            order = order[keep[order]]
        if tag_ids is not None:
            order = order[np.sort(np.unique(tag_ids[order], return_index=True)[1])]
        part = self._part(order, epoch)
        if ordering.mode == "bucket":
            part = part[_laplace(by_length[part], ordering.num_bins(len(part)))]
        return np.tile(part, self.repeat_epoch) if self.repeat_epoch > 1 else part

    def _part(self, order: np.ndarray, epoch: int) -> np.ndarray:
        """The contiguous part of a pass that is this epoch's (and shard's)."""
        parts = self.partition_epoch * self.num_shards
        part = (epoch - 1) % self.partition_epoch * self.num_shards + self.shard_index
        size, longer = divmod(len(order), parts)
        start = part * size + min(part, longer)
        return order[start : start + size + (part < longer)]

    def batch_rng(self, epoch: int) -> RandomState:
        """For the shuffling of this epoch's batches: its own stream, another one in every epoch."""
        return RandomState([self.seed % 2**32, epoch, 1])


def _order(ordering: Ordering, num_seqs: int, lengths: np.ndarray, rng: RandomState) -> np.ndarray:
    """All sequences in the order of `ordering`; of `bucket` only the permutation that is then split into epochs."""
    mode = ordering.mode
    if mode == "default":
        return np.arange(num_seqs)
    if mode == "reverse":
        return np.arange(num_seqs)[::-1]
    if mode == "default_every_n":
        n = ordering.number or 1
        return np.arange(num_seqs // n * n).reshape(n, -1).T.reshape(-1)
    if mode == "sorted":
        return stable_argsort(lengths)
    if mode == "sorted_reverse":
        return stable_argsort(lengths, descending=True)
    if mode == "random_sample":
        return rng.randint(0, num_seqs, size=num_seqs) if num_seqs else np.arange(0)
    permutation = rng.permutation(num_seqs)
    if mode in ("random", "bucket"):
        return permutation
    num_bins = ordering.num_bins(num_seqs)
    if mode == "laplace":
        return permutation[_laplace(lengths[permutation], num_bins)]
    order = permutation[stable_argsort(lengths[permutation])]
    bounds = bin_bounds(num_seqs, num_bins)
    bins = []
    for i in rng.permutation(num_bins):
        members = order[bounds[i] : bounds[i + 1]]
        if mode == "sort_bin_shuffle_x2":
            rng.shuffle(members)
        bins.append(members)
    return np.concatenate(bins)


def bin_bounds(num_seqs: int, num_bins: int) -> np.ndarray:
    """Bin i is bounds[i] .. bounds[i+1]-1; (num_bins + 1,)."""
    return np.arange(num_bins + 1) * num_seqs // num_bins


def _laplace(lengths: np.ndarray, num_bins: int) -> np.ndarray:
    """Positions such that the lengths go up in the first bin, down in the next, up again, ..."""
    num_seqs = len(lengths)
    ranks = lengths if lengths.dtype.kind in "iu" else np.unique(lengths, return_inverse=True)[1]
    sizes = np.diff(bin_bounds(num_seqs, num_bins))
    bins = np.repeat(np.arange(num_bins), sizes)
    low, high = (int(ranks.min()), int(ranks.max())) if num_seqs else (0, 0)
    key = np.where(bins % 2 == 0, ranks - low, high - ranks)
    key += bins * (high - low + 1)
    return stable_argsort(key)


def stable_argsort(values: np.ndarray, descending: bool = False) -> np.ndarray:
    """Positions that sort the values; equal values keep their order, also when descending."""
    if values.dtype.kind in "iu":
        low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
        num = max(len(values), 1)
        if (high - low + 1) * num < 2**63:  # value and position in one number: several times faster than a stable sort
            keys = (high - values if descending else values - low).astype(np.int64)
            keys *= num
            keys += np.arange(len(values))
            keys.sort()
            keys %= num
            return keys
    if descending:
        return len(values) - 1 - np.argsort(values[::-1], kind="stable")[::-1]
    return np.argsort(values, kind="stable")
