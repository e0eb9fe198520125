"""Which parameters are in which group."""

import pytest
import torch
from torch import nn

from returnn_hydra.optim.param_groups import freeze_parameters, param_groups, parameter_owners


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.emb = nn.Embedding(5, 4)
        self.lin = nn.Linear(4, 4)
        self.ln = nn.LayerNorm(4)
        self.bn = nn.BatchNorm1d(4)
        self.lstm = nn.LSTM(4, 3)
        self.tied = nn.Linear(4, 5)
        self.tied.weight = self.emb.weight


def names_of(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in groups]


def test_no_decay_for_biases_norms_and_embeddings():
    model = Model()
    groups = param_groups(model, weight_decay=0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    decay, rest = names_of(model, groups)
    assert decay == ["scale", "lin.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0"]
    assert sorted(decay + rest) == sorted(name for name, _ in model.named_parameters())


def test_one_group_without_decay_and_the_optimizers_own():
    model = Model()
    assert names_of(model, param_groups(model, weight_decay=0.0)) == [[name for name, _ in model.named_parameters()]]
    optimizer = torch.optim.AdamW(param_groups(model), lr=0.1, weight_decay=0.3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_excluded_by_glob_or_class():
    model = Model()
    decay, rest = names_of(model, param_groups(model, weight_decay=0.1, exclude=["lstm.*", "_NormBase", "scale"]))
    assert rest == [name for name, _ in model.named_parameters() if name.startswith(("scale", "bn", "lstm"))]
    assert "ln.bias" in decay
    with pytest.raises(ValueError, match=r"weight_decay_exclude: 'lst\.\*' matches no parameter; did you mean"):
        param_groups(model, weight_decay=0.1, exclude=["lst.*"])


def test_multipliers_and_freezing():
    model = Model()
    freeze_parameters(model, ["emb.*", "ln.*"])
    groups = param_groups(model, weight_decay=0.0, learning_rate_multipliers={"lin.bias": 0.0, "lin.*": 0.5})
    assert [group["learning_rate_multiplier"] for group in groups] == [0.0, 0.5, 1.0]
    first, second, rest = names_of(model, groups)
    assert (first, second) == (["lin.bias"], ["lin.weight"])
    assert not any(name.startswith(("emb", "ln.")) for name in rest)
    assert not model.emb.weight.requires_grad
    with pytest.raises(ValueError, match=r"freeze: 'embedding' matches no parameter; did you mean 'emb\.weight'"):
        freeze_parameters(model, ["embedding"])
    freeze_parameters(model, ["*"])
    with pytest.raises(ValueError, match="all frozen"):
        param_groups(model)
    with pytest.raises(ValueError, match="expected a number from 0"):
        param_groups(model, learning_rate_multipliers={"*": -1.0})


def test_shared_parameters_count_once():
    model = Model()
    assert list(parameter_owners(model)) == [name for name, _ in model.named_parameters()]
    assert isinstance(parameter_owners(model)["emb.weight"], nn.Embedding)
