"""SpecAugment: what is masked, how much at most, and when."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn_hydra.nn.specaugment import SpecAugment


def stretches(masked: torch.Tensor) -> list[int]:
    """Lengths of the runs of True."""
    runs, current = [], 0
    for value in [*masked.tolist(), False]:
        if value:
            current += 1
        elif current:
            runs.append(current)
            current = 0
    return runs


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(0, 12), st.integers(0, 5), st.integers(0, 9))
def test_masks_stay_within_their_limits(lengths, max_time_width, max_feature_width, seed):
    torch.manual_seed(seed)
    layer = SpecAugment(1, max_time_width, 0.5, 1, max_feature_width)
    features = torch.ones(len(lengths), max(lengths), 5)
    for row, length in zip(features, lengths, strict=True):
        row[length:] = 7.0  # padding: not touched
    outputs, out_lengths = layer(features, torch.tensor(lengths))
    assert out_lengths.tolist() == lengths
    for row, length in zip(outputs, lengths, strict=True):
        assert bool((row[length:] == 7.0).all())
        real = row[:length]
        assert set(real.unique().tolist()) <= {0.0, 1.0}
        in_features = (real == 0).all(0)
        in_time = (real == 0).all(1) & ~in_features.all()
        assert torch.equal(real == 0, in_time[:, None] | in_features)
        if not in_time.any() or not in_time.all():
            assert sum(stretches(in_time)) <= min(max_time_width, length // 2)
            assert len(stretches(in_time)) <= 1
        assert sum(stretches(in_features)) <= max_feature_width or in_time.all()


def test_every_width_and_start_occurs_and_sequences_differ():
    torch.manual_seed(1)
    layer = SpecAugment(num_time_masks=1, max_time_width=3, max_time_part=1.0, num_feature_masks=0)
    outputs, _ = layer(torch.ones(2000, 4, 8), torch.full((2000,), 4))
    masked = {tuple((row[:, 0] == 0).tolist()) for row in outputs}
    starts_and_widths = {(start, width) for width in range(1, 4) for start in range(4 - width + 1)}
    expected = {tuple(s <= t < s + w for t in range(4)) for s, w in starts_and_widths} | {(False,) * 4}
    assert masked == expected
    widths = torch.stack([(row[:, 0] == 0).sum() for row in outputs]).float()
    assert float(widths.mean()) == pytest.approx(1.5, abs=0.1)


def test_evaluation_leaves_the_input_alone():
    layer = SpecAugment(max_feature_width=2).eval()
    features = torch.randn(2, 9, 4)
    assert layer(features, torch.tensor([9, 5]))[0] is features


def test_masks_must_fit_the_features():
    with pytest.raises(ValueError, match="max_feature_width=8, but there are only 4 features"):
        SpecAugment(max_feature_width=8)(torch.randn(1, 5, 4), torch.tensor([5]))
