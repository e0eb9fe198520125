"""Gradient rules against RETURNN's values, torch's clipping and statistics of the noise."""

import json
import math
from pathlib import Path

import pytest
import torch

from returnn_hydra.optim.gradients import GradientRules, global_norm

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden" / "optim_parts.json").read_text())


def with_gradients(*values):
    parameters = []
    for value in values:
        parameter = torch.nn.Parameter(torch.zeros_like(torch.tensor(value)))
        parameter.grad = torch.tensor(value)
        parameters.append(parameter)
    return parameters


@pytest.mark.parametrize("case", GOLDEN["clip_steps"])
def test_returnn_step(case):
    """One SGD step, rate 0.1, from weight 0, 0.1, ..., 0.5 and bias 0; all gradients are far above the limit."""
    parameters = [torch.nn.Parameter(torch.arange(6).reshape(2, 3) / 10), torch.nn.Parameter(torch.zeros(2))]
    after = [torch.tensor(case["weight"]), torch.tensor(case["bias"])]
    for parameter, target in zip(parameters, after, strict=True):
        parameter.grad = 100 * torch.sign(parameter.detach() - target)
    config = case["config"]
    GradientRules(max_value=config["gradient_clip"], max_norm=config["gradient_clip_global_norm"]).apply(parameters)
    torch.optim.SGD(parameters, lr=0.1).step()
    assert all(
        torch.allclose(parameter, target, atol=1e-6) for parameter, target in zip(parameters, after, strict=True)
    )


def test_norm_clipping_is_torchs():
    parameters = with_gradients([3.0, -4.0], [[12.0]])
    norm = GradientRules(max_norm=2.0).apply(parameters)
    copies = with_gradients([3.0, -4.0], [[12.0]])
    assert norm == torch.nn.utils.clip_grad_norm_(copies, 2.0) == 13.0
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(parameters, copies, strict=True))
    assert GradientRules(max_norm=100.0).apply(with_gradients([3.0, 4.0])) == 5.0


def test_order_value_before_norm_and_norm_measured_first():
    parameters = with_gradients([30.0, 0.4])
    norm = GradientRules(max_norm=0.5, max_value=0.3).apply(parameters)
    assert norm == pytest.approx(math.hypot(30.0, 0.4))
    assert parameters[0].grad.tolist() == pytest.approx([0.3, 0.3])  # norm 0.42 after clamping: not scaled
    per_tensor = with_gradients([3.0, 4.0], [0.1])
    GradientRules(max_norm_per_tensor=1.0).apply(per_tensor)
    assert per_tensor[0].grad.tolist() == pytest.approx([0.6, 0.8])
    assert per_tensor[1].grad.tolist() == pytest.approx([0.1])


def test_noise_is_a_normal_distribution_cut_at_two_deviations():
    torch.manual_seed(1)
    parameters = with_gradients([1.0] * 200_000)
    GradientRules(noise=0.1).apply(parameters)
    noise = (parameters[0].grad - 1.0) / 0.1
    assert noise.abs().max() <= 2.0 + 1e-5
    assert noise.mean().abs() < 0.01
    assert noise.std() == pytest.approx(0.8796, abs=0.005)  # of a standard normal cut at +-2


def test_bad_and_no_gradients():
    assert torch.isnan(GradientRules().apply(with_gradients([1.0, math.nan])))
    assert torch.isinf(GradientRules(max_norm=1.0).apply(with_gradients([math.inf])))
    assert GradientRules(max_norm=1.0, max_value=1.0).apply([torch.nn.Parameter(torch.zeros(2))]) == 0.0
    assert global_norm([torch.tensor([3.0, -7.0])], math.inf) == 7.0


@pytest.mark.parametrize("options", [{"max_norm": 0}, {"max_value": -1.0}, {"noise": -0.1}, {"noise": math.nan}])
def test_wrong_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        GradientRules(**options)
