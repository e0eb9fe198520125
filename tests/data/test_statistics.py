"""Mean and deviation of features."""

from pathlib import Path

import numpy as np
import pytest

from returnn_hydra.data.arrays import StaticDataset
from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.features import AudioFeatures
from returnn_hydra.data.hdf import HDFDataset
from returnn_hydra.data.statistics import statistics

DATA = Path(__file__).parent / "golden" / "data"


def test_against_numpy(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(1e4, [1, 10, 0.1], (n, 3)) for n in rng.integers(0, 20, 100)]
    found = statistics(StaticDataset([{"data": array} for array in arrays], {"data": {"dim": 3, "dtype": "float64"}}))
    frames = np.concatenate(arrays)
    np.testing.assert_allclose(found.mean, frames.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std, frames.std(axis=0), rtol=1e-9)
    np.testing.assert_array_equal((found.min, found.max), (frames.min(axis=0), frames.max(axis=0)))
    assert (found.num_seqs, found.num_frames) == (100, len(frames))
    mean, std = found.save(tmp_path / "train")
    features = AudioFeatures("mfcc", 3, norm_mean=mean, norm_std_dev=std)
    np.testing.assert_allclose(features.norm_mean, frames.mean(axis=0), rtol=1e-6)


def test_errors():
    with pytest.raises(DataError, match="has no features"):
        statistics(HDFDataset([DATA / "align.hdf"]))
    with pytest.raises(DataError, match="no frames"):
        statistics(StaticDataset([], {"data": {"dim": 3}}))
