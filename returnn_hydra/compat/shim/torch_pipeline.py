"""returnn.torch.data.pipeline: what configs' own `torch_batching` functions build on."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch.utils.data import IterDataPipe

from returnn_hydra.compat.shim.names_only import name_only
from returnn_hydra.compat.shim.numbers_dict import NumbersDict
from returnn_hydra.compat.shim.util import get_fwd_compat_kwargs

__all__ = ["BatchingIterDataPipe", "ChunkingIterDataPipe"]

ChunkingIterDataPipe = name_only("returnn.torch.data.pipeline", "ChunkingIterDataPipe")

Sequence = Mapping[str, np.ndarray]


def _exceeds(size: NumbersDict, limit: NumbersDict) -> bool:
    return size.any_compare(limit, lambda a, b: a > b)


class BatchingIterDataPipe(IterDataPipe):
    """Lists of sequences, filled one after the other up to the limits.

    The names with an underscore are those that subclasses in configs use.

    Args:
        dataset: the sequences, each a dict of arrays with time as their first axis.
        batch_size: frames with padding; a number, by stream, or a function of the epoch and the sequence.
        max_seqs: sequences; -1 or None: any number.
        packed_batch_size: frames without padding.
    """

    def __init__(
        self, dataset: Iterable[Sequence], batch_size: Any = 1, max_seqs: Any = None, packed_batch_size: Any = None
    ) -> None:
        super().__init__()
        self._dataset = dataset
        self._max_batch_size = self._parse_batch_size(batch_size)
        self._max_seqs = self._parse_max_seqs(max_seqs)
        self._max_packed_batch_size = None if packed_batch_size is None else self._parse_batch_size(packed_batch_size)

    @classmethod
    def _parse_batch_size(cls, batch_size: Any, *, data_dict: Mapping[str, Any] | None = None) -> Any:
        if callable(batch_size):
            if not data_dict:
                return batch_size
            batch_size = batch_size(**cls._get_user_func_kwargs_from_data_dict(data_dict))
        return NumbersDict(sys.maxsize if batch_size is None else batch_size)

    @classmethod
    def _parse_max_seqs(cls, max_seqs: Any, *, data_dict: Mapping[str, Any] | None = None) -> Any:
        if callable(max_seqs):
            if not data_dict:
                return max_seqs
            max_seqs = max_seqs(**cls._get_user_func_kwargs_from_data_dict(data_dict))
        return sys.maxsize if max_seqs in (None, -1) else max_seqs

    @staticmethod
    def _get_user_func_kwargs_from_data_dict(data_dict: Mapping[str, Any]) -> dict[str, Any]:
        epoch, seq_idx, num_seqs = (int(data_dict[key]) for key in ("epoch", "seq_idx", "num_seqs"))
        part = float(data_dict.get("complete_frac", -1))
        if part < 0 and num_seqs > 0:
            part = (seq_idx + 1) / num_seqs
        return {
            "epoch": epoch,
            "epoch_continuous": epoch - 1 + part if part >= 0 else None,
            "seq_idx": seq_idx,
            **get_fwd_compat_kwargs(),
        }

    def __iter__(self) -> Iterator[list[Sequence]]:
        batch: list[Sequence] = []
        longest = total = NumbersDict(0)
        for sequence in self._dataset:
            max_seqs = self._parse_max_seqs(self._max_seqs, data_dict=sequence)
            limit = self._parse_batch_size(self._max_batch_size, data_dict=sequence)
            if len(batch) >= max_seqs:
                yield batch
                batch, longest, total = [], NumbersDict(0), NumbersDict(0)
            lengths = NumbersDict({key: array.shape[0] for key, array in sequence.items() if array.shape})
            with_it, total_with_it = NumbersDict.max([longest, lengths]), total + lengths
            too_much = _exceeds(with_it * (len(batch) + 1), limit)
            if self._max_packed_batch_size is not None:
                packed = self._parse_batch_size(self._max_packed_batch_size, data_dict=sequence)
                too_much = too_much or _exceeds(total_with_it, packed)
            if batch and too_much:
                yield batch
                batch, longest, total = [sequence], lengths, lengths
            else:
                batch.append(sequence)
                longest, total = with_it, total_with_it
        if batch:
            yield batch
