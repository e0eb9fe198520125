"""Norms over padded batches against the statistics of the real frames."""

import pytest
import torch

from returnn_hydra.nn.norm import InputNorm, MaskedBatchNorm


def test_batch_norm_sees_real_frames_only():
    torch.manual_seed(1)
    norm, reference = MaskedBatchNorm(3), torch.nn.BatchNorm1d(3)
    features, lengths = torch.randn(2, 4, 3), [4, 2]
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    outputs = norm(features, mask)
    expected = reference(torch.cat([features[0], features[1, :2]]))
    torch.testing.assert_close(torch.cat([outputs[0], outputs[1, :2]]), expected)
    torch.testing.assert_close(norm.running_var, reference.running_var)
    assert outputs[1, 2:].abs().sum() == 0


def test_input_norm_has_the_statistics_of_all_frames():
    torch.manual_seed(2)
    norm = InputNorm(3).train()
    real = []
    for lengths in ([4, 2], [1, 5], [3, 3]):
        features = 5.0 + torch.randn(2, 5, 3) * torch.tensor([1.0, 2.0, 0.1])
        mask = torch.arange(5) < torch.tensor(lengths)[:, None]
        outputs = norm(features, mask)
        real.append(features[mask])
        frames = torch.cat(real)
        expected = (features - frames.mean(0)) / frames.std(0, correction=0)
        torch.testing.assert_close(outputs[mask], expected[mask], atol=1e-4, rtol=1e-4)
        assert outputs[~mask].abs().sum() == 0
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    norm.eval()(features + 3.0, mask)
    assert all(torch.equal(before[key], value) for key, value in norm.state_dict().items())


def test_a_constant_feature_stays_finite():
    norm = InputNorm(1).train()
    outputs = norm(torch.full((1, 4, 1), 3.0), torch.ones(1, 4, dtype=torch.bool))
    assert outputs.abs().max() == 0


def test_labels_are_no_features():
    with pytest.raises(ValueError, match="labels need a model with an embedding"):
        InputNorm(3)(torch.zeros(2, 4, dtype=torch.int32), torch.ones(2, 4, dtype=torch.bool))
