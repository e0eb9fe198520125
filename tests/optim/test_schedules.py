"""Schedules by step against torch's own run of the same scheduler, and against values by hand."""

import json
import math

import pytest
import torch

from returnn_hydra.optim.learning_rate_control import Constant
from returnn_hydra.optim.schedules import InverseSqrt, PiecewiseLinear, TorchSchedule, Warmup

SCHEDULERS = [
    ("CosineAnnealingLR", {"T_max": 10, "eta_min": 0.01}),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": 30}),
    ("ExponentialLR", {"gamma": 0.9}),
    ("MultiStepLR", {"milestones": [3, 8], "gamma": 0.5}),
    ("StepLR", {"step_size": 4}),
    ("LinearLR", {"start_factor": 0.1, "total_iters": 7}),
    ("PolynomialLR", {"total_iters": 9, "power": 2.0}),
    ("CosineAnnealingWarmRestarts", {"T_0": 5}),
    ("CyclicLR", {"base_lr": 0.1, "max_lr": 0.4, "step_size_up": 3}),
]


def torch_rates(name, options, learning_rate, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=learning_rate, momentum=0.9)
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **options)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(("name", "options"), SCHEDULERS, ids=lambda value: value if isinstance(value, str) else "")
def test_torch_schedulers(name, options):
    expected = torch_rates(name, options, 0.2, 20)
    schedule = TorchSchedule(scheduler=name, **options)
    assert [schedule(step, 1, 0.0, 0.2) for step in range(20)] == expected
    assert schedule(4, 1, 0.0, 0.2) == expected[4]  # back
    resumed = TorchSchedule(scheduler=name, **options)
    schedule(12, 1, 0.0, 0.2)
    resumed.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    assert [resumed(step, 1, 0.0, 0.2) for step in range(12, 20)] == expected[12:]


def test_another_base_rate_starts_anew():
    schedule = TorchSchedule(scheduler="exponentiallr", gamma=0.5)
    assert [schedule(2, 1, 0.0, rate) for rate in (1.0, 8.0, 1.0)] == [0.25, 2.0, 0.25]


def test_by_epoch():
    schedule = TorchSchedule(scheduler="ExponentialLR", unit="epoch", gamma=0.5)
    assert [schedule(100, epoch, epoch - 1 + 0.3, 1.0) for epoch in (1, 2, 4)] == [1.0, 0.5, 0.125]


def test_state_goes_through_the_control():
    control = Constant(learning_rate=1.0, schedule=TorchSchedule(scheduler="ExponentialLR", gamma=0.5))
    control.step_learning_rate(3, 0.0, 1.0)
    other = Constant(learning_rate=1.0, schedule=TorchSchedule(scheduler="ExponentialLR", gamma=0.5))
    other.load_state_dict(json.loads(json.dumps(control.state_dict())))
    assert other.schedule._done == 3
    assert other.step_learning_rate(4, 0.0, 1.0) == 0.0625
    Constant(learning_rate=1.0).load_state_dict(Constant(learning_rate=1.0).state_dict())


def test_unknown_scheduler():
    with pytest.raises(ValueError, match="did you mean 'CosineAnnealingLR'"):
        TorchSchedule(scheduler="CosineAnealing", T_max=3)
    with pytest.raises(ValueError, match="no scheduler by step"):
        TorchSchedule(scheduler="ReduceLROnPlateau")
    with pytest.raises(TypeError, match="gama"):
        TorchSchedule(scheduler="ExponentialLR", gama=3)


def test_inverse_sqrt_is_noam_with_its_peak_at_the_rate():
    schedule = InverseSqrt(warmup_steps=100)

    def noam(step, model_dim=512):  # Vaswani et al. 2017, equation 3
        return model_dim**-0.5 * min(step**-0.5, step * 100**-1.5)

    for step in (1, 10, 100, 101, 5000):
        assert schedule(step - 1, 1, 0.0, noam(100)) == pytest.approx(noam(step))


def test_warmup_then_something():
    schedule = Warmup(num_steps=4, start_factor=0.2, then=TorchSchedule(scheduler="ExponentialLR", gamma=0.5))
    rates = [schedule(step, 1, 0.0, 1.0) for step in range(7)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.5, 0.25])
    assert Warmup(num_steps=4)(9, 1, 0.0, 0.7) == 0.7


def test_piecewise_linear():
    schedule = PiecewiseLinear(points={0: 0.0, 10: 1.0, 20: 0.5})
    rates = [schedule(0, int(now) + 1, now, 2.0) for now in (-1.0, 0.0, 5.0, 10.0, 15.0, 20.0, 99.0)]
    assert rates == pytest.approx([0.0, 0.0, 1.0, 2.0, 1.5, 1.0, 1.0])
    by_step = PiecewiseLinear(points={0: 1e-5, 1000: 1e-3}, unit="step", relative=False)
    assert math.isclose(by_step(500, 1, 0.0, 7.0), (1e-5 + 1e-3) / 2)
    with pytest.raises(ValueError, match="unit='steps'"):
        PiecewiseLinear(points={0: 1.0}, unit="steps")
