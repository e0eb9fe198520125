"""RETURNN's options of a training in our words."""

import json
from pathlib import Path

import pytest

from returnn_hydra.build import Builder
from returnn_hydra.compat.training_options import (
    device,
    extern_data_node,
    learning_rate_control_node,
    retention,
    task,
    training_options,
)
from returnn_hydra.config.errors import ConfigError

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden" / "lr_control.json").read_text())
CASES = [case for case in GOLDEN["cases"] if case["error_key"][0] in ("dev_score", "dev_loss_ce")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['type']}-{case['scores']}")
def test_learning_rates_of_the_built_rule(case):
    config = dict(case["config"])
    if isinstance(config.get("learning_rates"), dict):
        config["learning_rates"] = {int(epoch): rate for epoch, rate in config["learning_rates"].items()}
    options = training_options(config)
    control = Builder().build(
        options["learning_rate_control"], "control", learning_rate=options["learning_rate"], score=None
    )
    history = []
    for score in [*GOLDEN["scores"][case["scores"]], 0.0]:
        scores = {"train/ce": 0.9 * score, "dev/ce": score}
        history.append((control.learning_rate(len(history) + 1, history), scores))
    assert [rate for rate, _ in history] == pytest.approx(case["lrs"], rel=1e-12)


def test_flat_keys():
    options = training_options(
        {
            "num_epochs": 7,
            "device": "gpu",
            "gradient_clip": 5.0,
            "gradient_clip_global_norm": None,
            "gradient_noise": 0.1,
            "accum_grad_multiple_step": 2,
            "torch_amp": {"dtype": "bfloat16"},
            "log_verbosity": [3, 5],
            "cleanup_old_models": {"keep_last_n": 3, "keep": [20]},
            "stop_on_nonfinite_train_score": False,
        }
    )
    control = options.pop("learning_rate_control")
    assert control == {"_target_": "returnn_hydra.optim.learning_rate_control.Constant"}
    assert options == {
        "loss_normalization": "sum",
        "learning_rate": 1.0,
        "seed": 42,
        "num_epochs": 7,
        "device": "gpu",
        "max_grad_value": 5.0,
        "gradient_noise": 0.1,
        "grad_accum_steps": 2,
        "amp": "bfloat16",
        "log_verbosity": 5,
        "on_nonfinite": "skip",
        "keep_last": 3,
        "keep_best": 4,
        "keep_epochs": [20],
    }


def test_dynamic_learning_rate():
    calls = []

    def dynamic(*, global_train_step, learning_rate, **others):
        calls.append((global_train_step, others["epoch"], others["epoch_continuous"]))
        return learning_rate * 4

    node = learning_rate_control_node({"dynamic_learning_rate": dynamic})
    control = Builder().build(node, "control", learning_rate=0.02)
    assert control.step_learning_rate(3, 1.25, 0.02) == 0.08
    assert calls == [(3, 2, 1.25)]
    strict = learning_rate_control_node({"dynamic_learning_rate": lambda *, epoch: epoch / 10})
    assert Builder().build(strict, "control", learning_rate=1.0).step_learning_rate(3, 1.25, 1.0) == 0.2


def test_words():
    assert [device(name) for name in ("gpu", "cuda", "gpu1", "cuda:2", "CPU", "mps")] == [
        "gpu",
        "gpu",
        "cuda:1",
        "cuda:2",
        "cpu",
        "mps",
    ]
    assert [task({}), task({"task": "eval"}), task({"task": "hpx"})] == ["train", "evaluate", "forward"]
    assert retention({"cleanup_old_models": False}) == {}


def test_extern_data():
    assert extern_data_node({"num_inputs": 9, "num_outputs": {"classes": [2, 1]}}) == {
        "classes": {"dim": 2, "sparse": True},
        "data": {"dim": 9, "sparse": False},
    }
    entries = {
        "data": {"dim": 9, "shape": (None, 9), "batch_dim_axis": 0},
        "label": {"dim": 10, "sparse": True, "time_dim_axis": None},
        "text": {"vocab": {"class": "Utf8ByteTargets"}, "available_for_inference": False},
    }
    assert extern_data_node({"extern_data": entries}) == {
        "data": {"dim": 9, "shape": [None, 9]},
        "label": {"dim": 10, "sparse": True, "shape": []},
        "text": {"available_for_inference": False, "vocab": {"_target_": "returnn_hydra.data.vocab.Utf8Bytes"}},
    }


@pytest.mark.parametrize(
    ("call", "values", "message"),
    [
        (training_options, {"learning_rate_control": "newbop"}, "did you mean 'newbob'"),
        (training_options, {"device": "tpu"}, "device='tpu'"),
        (training_options, {"cleanup_old_models": {"keep_n": 1}}, "unknown 'keep_n'"),
        (task, {"task": "trane"}, "did you mean 'train'"),
        (extern_data_node, {}, "extern_data is missing"),
        (
            extern_data_node,
            {"extern_data": {"data": {"dim": 9, "dim_tags": [1]}}},
            "data.dim_tags must be a list of dims",
        ),
        (extern_data_node, {"extern_data": {"data": {"dim": 9, "batch_dim_axis": 1}}}, "batch_dim_axis"),
    ],
)
def test_errors_teach(call, values, message):
    with pytest.raises(ConfigError, match=message):
        call(values)
