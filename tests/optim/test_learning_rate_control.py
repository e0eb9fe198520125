"""Learning rates by epoch: RETURNN's values, its newbob formulas by hand, and torch's plateau rule."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn_hydra.optim.learning_rate_control import Constant, Newbob, ReduceOnPlateau, UnknownScore

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden" / "lr_control.json").read_text())
RULE_BY_NAME = {"newbob": "relative", "newbob_rel": "relative", "newbob_relative": "relative", "newbob_abs": "absolute"}


def run(control, scores, name="dev/ce"):
    """The rates of all epochs, and of one more."""
    history = []
    for score in [*scores, math.nan]:
        history.append((control.learning_rate(len(history) + 1, history), {name: score}))
    return [rate for rate, _ in history]


def from_returnn(config):
    """Our rule for RETURNN's option names."""
    rates = config.get("learning_rates")
    if isinstance(rates, dict):
        rates = {int(epoch): rate for epoch, rate in rates.items()}
    common = {"learning_rate": config.get("learning_rate", 1.0), "learning_rates": rates}
    rule = config.get("learning_rate_control", "constant")
    if rule == "constant":
        return Constant(**common)
    threshold = config.get("newbob_relative_error_threshold", -0.01)
    options = {"change": RULE_BY_NAME.get(rule, "relative"), "threshold": threshold}
    if rule == "newbob_abs":
        options["threshold"] = config.get("newbob_error_threshold", -0.01)
    elif config.get("newbob_relative_error_div_by_old"):
        options["change"] = "relative_to_old"
    if rule == "newbob_multi_epoch":
        options["num_epochs"] = config.get("newbob_multi_num_epochs", 5)
        options["update_interval"] = config.get("newbob_multi_update_interval", options["num_epochs"])
        options["growth_threshold"] = config.get("newbob_relative_error_grow_threshold", threshold)
    return Newbob(
        **common,
        **options,
        min_learning_rate=config.get("min_learning_rate", 0.0),
        decay=config.get("learning_rate_decay", config.get("newbob_learning_rate_decay", 0.5)),
        growth=config.get("learning_rate_growth", config.get("newbob_learning_rate_growth", 1.0)),
        min_epochs_per_rate=config.get("learning_rate_control_min_num_epochs_per_new_lr", 0),
        relative_to_rate=config.get("learning_rate_control_relative_error_relative_lr", False),
    )


# The golden file has the values of the first score only.
CASES = [case for case in GOLDEN["cases"] if case["error_key"][0] in ("dev_score", "dev_loss_ce")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['type']}-{case['scores']}")
def test_returnn_values(case):
    rates = run(from_returnn(case["config"]), GOLDEN["scores"][case["scores"]])
    assert rates == pytest.approx(case["lrs"], rel=1e-12)


def test_reference_sequence():
    scores = [1.0, 0.9, 0.895, 0.894, 0.8, 0.81, 0.7, 0.6]
    assert run(Newbob(learning_rate=0.1), scores)[:8] == [0.1, 0.1, 0.1, 0.05, 0.025, 0.025, 0.0125, 0.0125]
    multi = Newbob(learning_rate=0.1, num_epochs=2, update_interval=2, growth_threshold=-0.01)
    assert run(multi, scores)[:8] == [0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05]


def test_explicit_rates_win_and_their_last_one_stays():
    assert run(Constant(learning_rate=1, learning_rates=[0.1, 0.2]), [1.0] * 3) == [0.1, 0.2, 0.2, 0.2]
    assert run(Newbob(learning_rate=1.0, learning_rates={2: 0.5}), [1.0] * 3) == [1.0, 0.5, 0.25, 0.125]
    assert Constant(learning_rate=1.0, learning_rates={2: 0.5, 4: 0.1}).learning_rate(4, []) == 0.1
    assert Constant(learning_rate=1.0, learning_rates={2: 0.5, 4: 0.1}).learning_rate(3, []) == 0.5


def test_decay_and_growth_may_be_functions():
    control = Newbob(learning_rate=1.0, decay=lambda rate: rate - 0.25, growth=lambda rate: rate + 1.0)
    assert run(control, [1.0, 1.0, 0.5]) == [1.0, 1.0, 0.75, 1.75]


@settings(deadline=None)
@given(st.lists(st.floats(-10, 10), max_size=8), st.integers(1, 9))
def test_only_earlier_epochs_matter(scores, epoch):
    history = [(0.5**index, {"dev/ce": score}) for index, score in enumerate(scores)]
    for control in (Constant(learning_rate=1.0), Newbob(learning_rate=1.0), ReduceOnPlateau(learning_rate=1.0)):
        assert control.learning_rate(epoch, history) == control.learning_rate(epoch, history[: epoch - 1])


@pytest.mark.parametrize("bad", [None, math.nan])
def test_missing_scores_keep_the_rate(bad):
    scores = [{"dev/ce": 1.0}, {} if bad is None else {"dev/ce": bad}, {"dev/ce": 2.0}]
    control = Newbob(learning_rate=1.0, growth=3.0)
    history = [(1.0, entry) for entry in scores]
    assert [control.learning_rate(epoch, history) for epoch in (3, 4)] == [1.0, 1.0]
    assert control.learning_rate(5, [*history, (1.0, {"dev/ce": 2.0})]) == 0.5


def test_the_declared_score_decides():
    history = [
        (1.0, {"train/ce": 2.0, "dev/ce": 3.0, "dev/error": 1.0}),
        (1.0, {"train/ce": 1.0, "dev/ce": 3.0, "dev/error": 0.5}),
    ]
    assert Newbob(learning_rate=1.0).learning_rate(3, history) == 0.5  # dev/ce, the first of dev
    assert Newbob(learning_rate=1.0, score="dev/error").learning_rate(3, history) == 1.0
    assert Newbob(learning_rate=1.0, score=lambda names: sorted(names)[-1]).learning_rate(3, history) == 1.0
    with pytest.raises(
        UnknownScore, match=r"dev/eror.*did you mean 'dev/error'.*there is: train/ce, dev/ce, dev/error"
    ):
        Newbob(learning_rate=1.0, score="dev/eror").learning_rate(3, history)
    assert Newbob(learning_rate=1.0).learning_rate(2, [(1.0, {"train/ce": 1.0})]) == 1.0


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 10), max_size=12))
def test_plateau_is_torchs(scores):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1, min_lr=0.01)
    expected = [1.0]
    for score in scores:
        plateau.step(score)
        expected.append(optimizer.param_groups[0]["lr"])
    assert run(ReduceOnPlateau(learning_rate=1.0, factor=0.5, patience=1, min_learning_rate=0.01), scores) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"learning_rate": 1, "learning_rates": "[0.1]"}, "expected a list of rates"),
        ({"learning_rate": 1, "learning_rates": {0: 0.1}}, "0 is no epoch"),
        ({"learning_rate": 1, "learning_rates": [0.1, None]}, r"learning_rates\[2\]=None"),
        ({"learning_rate": 1, "change": "rel"}, "expected one of relative"),
        ({"learning_rate": 1, "num_epochs": 0}, "num_epochs=0"),
        ({"learning_rate": 1, "decay": "half"}, "decay='half'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Newbob(**options)


def test_step_rate_is_the_schedules():
    seen = []

    def schedule(*arguments):
        seen.append(arguments)
        return 0.125

    control = Constant(learning_rate=1.0, schedule=schedule)
    assert control.step_learning_rate(7, 2.5, 0.5) == 0.125
    assert seen == [(7, 3, 2.5, 0.5)]
    assert Constant(learning_rate=1.0).step_learning_rate(7, 2.5, 0.5) == 0.5
