"""RETURNN's parameter groups."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from returnn_hydra.compat.optimizer import build_optimizer, optimizer_options, resolve_optimizer
from returnn_hydra.optim.lion import Lion

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden" / "optim_parts.json").read_text())
CASES = [case for case in GOLDEN["param_groups"] if case["model"] == "pt"]


class Model(nn.Module):
    """Has the parameter names of the golden file's model."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.emb = nn.Embedding(5, 4)
        self.lin = nn.Linear(4, 4)
        self.ln = nn.LayerNorm(4)
        self.bn = nn.BatchNorm1d(4)
        self.lstm = nn.LSTM(4, 3)
        self.sub = nn.Sequential(nn.Conv1d(3, 3, 1), nn.Linear(3, 3, bias=False))


def groups_of(optimizer, model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        {**group, "params": [names[id(parameter)] for parameter in group["params"]]} for group in optimizer.param_groups
    ]


def test_the_model_is_the_golden_one():
    assert [name for name, _ in Model().named_parameters()] == GOLDEN["param_names"]["pt"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["optimizer"]))
def test_returnn_groups(case):
    options, model = case["optimizer"], Model()
    if options == "adam":  # RETURNN wants a dict; here the name is enough
        assert type(build_optimizer(optimizer_options({"optimizer": "adam"}), model, 0.02)) is torch.optim.Adam
        return
    if "raises" in case:
        kind = (
            ValueError
            if case["raises"] == "AssertionError"
            else {"ValueError": ValueError, "TypeError": TypeError}[case["raises"]]
        )
        with pytest.raises(kind):
            build_optimizer(options, model, 0.02)
        return
    optimizer = build_optimizer(options, model, 0.02)
    assert type(optimizer).__name__ == case["optimizer_class"]
    for group, expected in zip(groups_of(optimizer, model), case["groups"], strict=True):
        found = {key: list(group[key]) if isinstance(group[key], tuple) else group[key] for key in expected}
        assert found == expected


def test_custom_check_and_custom_groups():
    def check(*, module, full_param_name, **_):
        return True if isinstance(module, nn.LSTM) else False if full_param_name == "scale" else None

    model = Model()
    options = {"class": "adamw", "weight_decay": 0.1, "weight_decay_custom_include_check": check}
    decay, others = groups_of(build_optimizer(options, model, 0.1), model)
    assert "scale" in others["params"]
    assert "lstm.bias_hh_l0" in decay["params"]

    def custom(*, model, optimizer_opts):
        return [
            {"params": model.lin.parameters(), "weight_decay": 0.3, "learning_rate_multiplier": 0.5},
            {"params": [model.scale]},
        ]

    options = {"class": "adamw", "weight_decay": 0.01, "param_groups_custom": custom}
    first, second = groups_of(build_optimizer(options, model, 0.02), model)
    assert (first["params"], first["weight_decay"], first["lr"]) == (["lin.weight", "lin.bias"], 0.3, 0.01)
    assert (second["params"], second["weight_decay"], second["lr"]) == (["scale"], 0.01, 0.02)


def test_classes_of_the_frontend():
    class Norm:
        pass

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.wrapped = Norm()
            self.scale = nn.Parameter(torch.ones(1))

    model = nn.Sequential(Wrapper(), nn.Linear(2, 2))
    optimizer = build_optimizer(
        {"class": "sgd", "weight_decay": 0.1},
        model,
        0.1,
        module_of=lambda module: getattr(module, "wrapped", module),
        class_names={"rf.LayerNorm": Norm},
    )
    assert [group["params"] for group in groups_of(optimizer, model)] == [["1.weight"], ["0.scale", "1.bias"]]
    with pytest.raises(ValueError, match=r"no class 'rf\.LayerNrm'; did you mean 'rf\.LayerNorm'"):
        build_optimizer(
            {"class": "sgd", "weight_decay": 0.1, "weight_decay_modules_blacklist": ["rf.LayerNrm"]},
            model,
            0.1,
            class_names={"rf.LayerNorm": Norm},
        )


def test_options_of_old_configs():
    assert optimizer_options({"nadam": True, "adam": False, "optimizer_epsilon": 0.1}) == {"class": "nadam", "eps": 0.1}
    assert optimizer_options({"momentum": 0.9}) == {"class": "sgd", "momentum": 0.9}
    with pytest.raises(ValueError, match="adam and nadam are set"):
        optimizer_options({"nadam": True, "adam": True})
    with pytest.raises(ValueError, match=r"no optimizer is set.*did you mean 'optimzer'"):
        optimizer_options({"optimzer": {"class": "adam"}})
    optimizer = build_optimizer({"class": "AdamOptimizer", "beta1": 0.8, "epsilon": 0.5}, Model(), 0.1)
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.8, 0.999), 0.5)
    with pytest.raises(ValueError, match="no 'adamm'; did you mean 'adam'"):
        resolve_optimizer("adamm")
    with pytest.raises(ValueError, match=r"no 'os\.adam'"):
        resolve_optimizer("os.adam")


def test_lion_by_hand():
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = Lion([parameter], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    value, momentum = parameter.detach().double().clone(), torch.zeros(2, dtype=torch.float64)
    for gradient in ([1.0, -3.0], [-20.0, 0.0], [0.1, 0.1]):
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        new = torch.tensor(gradient, dtype=torch.float64)
        value = value - 0.1 * (torch.sign(0.9 * momentum + 0.1 * new) + 0.5 * value)
        momentum = 0.99 * momentum + 0.01 * new
    assert torch.allclose(parameter.detach().double(), value, atol=1e-6)
    assert torch.allclose(optimizer.state[parameter]["exp_avg"].double(), momentum, atol=1e-6)
