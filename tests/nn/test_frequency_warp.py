"""Warped filterbank energies against numpy's interpolation on the frequency axis."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from returnn_hydra.nn.frequency_warp import FrequencyWarp, warp_frequencies

HIGHEST = 8000.0


def centres(num_filters: int) -> np.ndarray:
    """Frequencies equally far apart on the mel scale, in Hz."""
    mels = np.linspace(0.0, 2595.0 * np.log10(1.0 + HIGHEST / 700.0), num_filters)
    return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.07, 1.3])
def test_energies_of_other_frequencies(factor: float) -> None:
    frequencies = centres(20)
    slope = np.log1p(frequencies / 700.0)  # linear in mel: interpolation between filters is exact
    features = torch.tensor(np.stack([slope, 3.0 - 2.0 * slope]), dtype=torch.float64)[None]
    found = warp_frequencies(features, torch.tensor([factor], dtype=torch.float64), HIGHEST)[0].numpy()
    expected = np.log1p(np.minimum(factor * frequencies, HIGHEST) / 700.0)
    np.testing.assert_allclose(found, np.stack([expected, 3.0 - 2.0 * expected]), atol=1e-5)


def test_a_peak_moves_to_its_frequency_divided_by_the_factor() -> None:
    frequencies = centres(200)
    features = torch.zeros(1, 1, 200)
    peak = int(np.abs(frequencies - 3000.0).argmin())
    features[0, 0, peak - 2 : peak + 3] = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0])
    for factor in (0.85, 1.2):
        found = int(warp_frequencies(features, torch.tensor([factor]), HIGHEST)[0, 0].argmax())
        assert frequencies[found] == pytest.approx(3000.0 / factor, rel=0.02)


def test_training_draws_a_factor_for_every_sequence_and_evaluation_none() -> None:
    torch.manual_seed(0)
    warp = FrequencyWarp(max_factor=1.2)
    features = torch.randn(1, 5, 16).expand(6, 5, 16)
    lengths = torch.full((6,), 5)
    warped, new_lengths = warp(features, lengths)
    assert warped.shape == features.shape
    assert torch.equal(new_lengths, lengths)
    assert all(not torch.allclose(warped[0], other) for other in warped[1:])
    torch.testing.assert_close(FrequencyWarp(max_factor=1.0)(features, lengths)[0], features, atol=1e-4, rtol=1e-4)
    assert torch.equal(warp.eval()(features, lengths)[0], features)


def test_all_frames_of_a_sequence_are_warped_alike() -> None:
    warp = FrequencyWarp(max_factor=1.3)
    features = torch.randn(2, 1, 16).expand(2, 7, 16)
    warped, _ = warp(features, torch.tensor([7, 4]))
    torch.testing.assert_close(warped, warped[:, :1].expand(2, 7, 16))


def test_a_factor_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_factor=0\.9"):
        FrequencyWarp(max_factor=0.9)
