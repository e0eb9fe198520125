"""Augmentation of features, for `map_seq` of a PostprocessingDataset.

Legend: T frames, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.postprocessing import call_by_name

Streams = Mapping[str, np.ndarray]


class SpecAugment:
    """Masks some stretches of time and some bands of features, and may bend the time axis. The number of frames stays.

    Park et al.: SpecAugment: A Simple Data Augmentation Method for Automatic Speech Recognition, Interspeech 2019.

    Args:
        num_time_masks: stretches of time; each has 0 .. max_time_mask frames, and at most the part max_time_fraction
            of all.
        num_feature_masks: bands of features; each has 0 .. max_feature_mask.
        max_time_warp: a frame in the middle is moved by up to so many, and what is around it stretched or squeezed.
        mask_value: what a mask leaves, or "mean": each feature's mean over the sequence.
        first_epoch: epochs before are left as they are.
        stream: which one, (T, F).
    """

    def __init__(
        self,
        num_time_masks: int = 2,
        max_time_mask: int = 20,
        max_time_fraction: float = 0.2,
        num_feature_masks: int = 2,
        max_feature_mask: int = 8,
        max_time_warp: int = 0,
        mask_value: float | str = 0.0,
        first_epoch: int = 1,
        stream: str = "data",
    ) -> None:
        if isinstance(mask_value, str) and mask_value != "mean":
            raise DataError(f"SpecAugment: mask_value={mask_value!r}: a number or 'mean'")
        if not 0.0 <= max_time_fraction <= 1.0:
            raise DataError(f"SpecAugment: max_time_fraction={max_time_fraction}: expected 0 to 1")
        self.num_time_masks = num_time_masks
        self.max_time_mask = max_time_mask
        self.max_time_fraction = max_time_fraction
        self.num_feature_masks = num_feature_masks
        self.max_feature_mask = max_feature_mask
        self.max_time_warp = max_time_warp
        self.mask_value = mask_value
        self.first_epoch = first_epoch
        self.stream = stream

    def __call__(self, streams: Streams, rng: np.random.Generator, epoch: int = 1) -> Streams:
        """The streams, with a changed copy of one of them."""
        if self.stream not in streams:
            raise DataError(f"SpecAugment: no stream {self.stream!r}; there is: {', '.join(map(repr, streams))}")
        data = streams[self.stream]
        if epoch < self.first_epoch or not len(data):
            return streams
        data = self._warped(data, rng) if self.max_time_warp else data.copy()
        value = (
            data.mean(axis=0)
            if isinstance(self.mask_value, str)
            else np.full(data.shape[1:], self.mask_value, data.dtype)
        )
        most = min(self.max_time_mask, int(len(data) * self.max_time_fraction))
        for start, end in _stretches(rng, self.num_time_masks, most, len(data)):
            data[start:end] = value
        for start, end in _stretches(
            rng, self.num_feature_masks, min(self.max_feature_mask, data.shape[1]), data.shape[1]
        ):
            data[:, start:end] = value[start:end]
        return {**streams, self.stream: data}

    def _warped(self, data: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Time bent linearly on both sides of a frame, with interpolation between frames."""
        most = min(self.max_time_warp, (len(data) - 1) // 2)
        if most < 1:
            return data.copy()
        middle = int(rng.integers(most, len(data) - most))
        moved = middle + int(rng.integers(-most, most + 1))
        if moved in (0, len(data) - 1):
            return data.copy()
        positions = np.interp(np.arange(len(data)), [0, moved, len(data) - 1], [0, middle, len(data) - 1])
        left = positions.astype(np.int64)
        part = (positions - left).astype(data.dtype)[:, None]
        return data[left] * (1 - part) + data[np.minimum(left + 1, len(data) - 1)] * part


def _stretches(rng: np.random.Generator, num: int, longest: int, size: int) -> list[tuple[int, int]]:
    """`num` stretches of 0 .. longest positions inside of 0 .. size."""
    lengths = rng.integers(0, longest + 1, size=num)
    starts = rng.integers(0, size - lengths + 1)
    return [(int(start), int(start + length)) for start, length in zip(starts, lengths, strict=True)]


class AddNoise:
    """Adds Gaussian noise.

    Args:
        std: its standard deviation.
        stream: which one, of floats.
    """

    def __init__(self, std: float, stream: str = "data") -> None:
        self.std = std
        self.stream = stream

    def __call__(self, streams: Streams, rng: np.random.Generator) -> Streams:
        data = streams[self.stream]
        noise = rng.standard_normal(data.shape, dtype=np.float32) * np.float32(self.std)
        return {**streams, self.stream: (data + noise).astype(data.dtype)}


class Compose:
    """Several functions on a sequence as one, for `map_seq`; each takes what a `map_seq` may take."""

    def __init__(self, functions: list[Callable[..., Any]]) -> None:
        self.functions = list(functions)

    def __call__(self, streams: Streams, **facts: Any) -> Streams:
        for function in self.functions:
            streams = call_by_name(function, streams, **facts)
        return streams
