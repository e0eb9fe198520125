"""Mean and standard deviation of the features of a data set, e.g. for `norm_mean` and `norm_std_dev` of AudioFeatures.

Legend: T frames, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from returnn_hydra.data.checks import stream_spec
from returnn_hydra.data.dataset import DataError, Dataset
from returnn_hydra.data.files import PathLike

BLOCK = 32
"""Sequences that are read together."""


@dataclass(frozen=True)
class Statistics:
    """Over all frames of a stream."""

    num_seqs: int
    num_frames: int
    mean: np.ndarray
    """(F,)"""
    std: np.ndarray
    """(F,)"""
    min: np.ndarray
    """(F,)"""
    max: np.ndarray
    """(F,)"""

    def save(self, prefix: PathLike) -> tuple[Path, Path]:
        """Write `PREFIX.mean.txt` and `PREFIX.std_dev.txt`, a number per line; returns their paths."""
        paths = Path(f"{prefix}.mean.txt"), Path(f"{prefix}.std_dev.txt")
        for path, vector in zip(paths, (self.mean, self.std), strict=True):
            np.savetxt(path, vector)
        return paths


def statistics(dataset: Dataset, stream: str = "data", epoch: int = 1) -> Statistics:
    """Reads all sequences once; sums are merged pair by pair (Chan, Golub, LeVeque 1979), so that nothing is lost to
    rounding.

    Raises:
        DataError: the stream has no features, or the data set no frames.
    """
    spec = stream_spec(dataset, stream)
    if spec.sparse or spec.shape is None or len(spec.shape) < 2 or spec.shape[-1] is None:
        raise DataError(f"statistics: stream {stream!r} of shape {spec.shape} has no features")
    dataset = dataset.at_epoch(epoch).with_streams([stream])
    count, dim = 0, spec.shape[-1]
    mean, squares = np.zeros(dim), np.zeros(dim)
    low, high = np.full(dim, np.inf), np.full(dim, -np.inf)
    for start in range(0, len(dataset), BLOCK):
        arrays = dataset.read(np.arange(start, min(start + BLOCK, len(dataset)))).streams[stream]
        frames = np.concatenate([array.reshape(-1, dim) for array in arrays]).astype(np.float64)
        if not len(frames):
            continue
        difference = frames.mean(axis=0) - mean
        squares += ((frames - frames.mean(axis=0)) ** 2).sum(axis=0)
        squares += difference**2 * count * len(frames) / (count + len(frames))
        mean += difference * len(frames) / (count + len(frames))
        count += len(frames)
        low, high = np.minimum(low, frames.min(axis=0)), np.maximum(high, frames.max(axis=0))
    if not count:
        raise DataError(f"statistics: stream {stream!r} has no frames")
    return Statistics(len(dataset), count, mean, np.sqrt(squares / count), low, high)
