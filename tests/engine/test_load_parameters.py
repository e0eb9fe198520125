"""Parameters that don't fit: one line with examples of each kind of difference."""

import pytest
import torch
from torch import nn

from returnn_hydra.engine.load_parameters import load_parameters
from returnn_hydra.usage import UsageError


def test_the_same_parameters_are_loaded():
    one, other = nn.Linear(2, 3), nn.Linear(2, 3)
    load_parameters(one, other.state_dict(), "here", "")
    assert torch.equal(one.weight, other.weight)


def test_differences_are_counted_and_some_are_named():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    saved = {**nn.Sequential(nn.Linear(2, 4)).state_dict(), "a": torch.ones(1)}
    with pytest.raises(UsageError) as caught:
        load_parameters(model, saved, "epoch 3", "Do this")
    assert str(caught.value) == (
        "the parameters of epoch 3 don't fit the model, Sequential: "
        "2 of another shape (0.weight (4, 2), the model's (3, 2), 0.bias (4,), the model's (3,)); "
        "5 missing (1.weight, 1.bias, 1.running_mean, ...); 1 unknown to the model (a). Do this"
    )
