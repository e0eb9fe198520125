"""Functions that only change a gradient; the expected gradients are RETURNN's own (1.20261022)."""

import pytest
import torch

import returnn_hydra.frontend as rf
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.tensor import Tensor

LABELS = Dim(3, name="labels")


def gradient_through(function, incoming):
    raw = torch.tensor([0.2, 0.5, 0.3]).log().requires_grad_(True)
    out = function(Tensor("x", dims=[LABELS], dtype="float32", feature_dim=LABELS, raw_tensor=raw))
    torch.testing.assert_close(out.raw_tensor, raw)
    out.raw_tensor.backward(torch.tensor(incoming))
    return raw.grad.tolist()


@pytest.mark.parametrize(
    ("excluded", "incoming", "expected"),
    [
        (None, [-1.0, 0.0, 0.0], [-0.9, -0.05, -0.05]),
        (None, [0.0, 0.0, -1.0], [-0.05, -0.05, -0.9]),
        (None, [-0.5, -0.5, 0.0], [-0.475, -0.475, -0.05]),
        (None, [-2.0, 1.0, 0.0], [-1.85, 0.7, -0.15]),
        (None, [1.0, 0.0, 0.0], [0.8, -0.05, -0.05]),
        ([2], [-1.0, 0.0, 0.0], [-0.9, -0.1, 0.0]),
        ([2], [0.0, 0.0, -1.0], [-0.1, -0.1, -1.0]),
        ([2], [-2.0, 1.0, 0.0], [-1.9, 0.5, 0.0]),
    ],
)
def test_label_smoothed_log_prob_gradient(excluded, incoming, expected):
    found = gradient_through(
        lambda x: rf.label_smoothed_log_prob_gradient(x, 0.1, axis=LABELS, exclude_labels=excluded), incoming
    )
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("incoming", "expected"),
    [([-1.0, 0.0, 0.0], [-0.4, 0.1, 0.1]), ([1.0, 0.0, 0.0], [0.6, 0.1, 0.1]), ([-2.0, 1.0, 0.0], [-0.7, 0.8, 0.3])],
)
def test_scaled_gradient_ext(incoming, expected):
    found = gradient_through(
        lambda x: rf.scaled_gradient_ext(x, scale=0.5, shift=0.1, scale_shift_by_sum_over_axis=LABELS), incoming
    )
    assert found == pytest.approx(expected, abs=1e-6)
