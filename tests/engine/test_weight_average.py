"""The moving average of the parameters: against one by hand, in evaluation, on the disk, after a restart."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from returnn_hydra.batch import Loss
from returnn_hydra.engine.run_store import RunStore
from returnn_hydra.engine.training_tensors import TRAINED
from returnn_hydra.engine.updater import Updater, UpdateRules
from returnn_hydra.engine.weight_average import WeightAverage

WORDS = ("task=train", "model.hidden_dim=4", "model.dropout=0.1", "batch_size=1200", "max_seqs=null", "num_epochs=2")


class Tied(nn.Module):
    """A model with tied weights, BatchNorm and a frozen parameter."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


def test_equals_an_average_by_hand():
    torch.manual_seed(3)
    model = Tied()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    average = WeightAverage(model, 0.8)
    updater = Updater(model, optimizer, UpdateRules(grad_accum_steps=2), torch.device("cpu"), average=average)
    by_hand = None
    for _ in range(10):
        updater.start_batch(1, 0.0)
        loss = model(torch.randn(5, 3)).square().sum()
        if updater.update({"loss": Loss(loss, 15)}, ["a"]):
            now = {name: p.detach().double().clone() for name, p in model.named_parameters() if p.requires_grad}
            by_hand = {n: 0.8 * by_hand[n] + (1 - 0.8) * v for n, v in now.items()} if by_hand else now
    own = {name: value.clone() for name, value in model.state_dict().items()}
    state = average.model_state()
    assert state.keys() == own.keys()
    for name, value in by_hand.items():
        assert torch.allclose(state[name].double(), value, rtol=1e-5, atol=1e-6)
        assert not torch.equal(state[name], own[name])
    assert torch.equal(state["second.weight"], state["first.weight"])
    for name in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "second.bias"):
        assert torch.equal(state[name], own[name])
    with average.applied():
        inside = model.state_dict()
        assert all(torch.equal(inside[name], value) for name, value in state.items())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in own.items())


def test_the_parameters_come_back_when_the_evaluation_fails():
    model = nn.Linear(2, 2)
    average = WeightAverage(model, 0.5)
    average.update()
    with torch.no_grad():
        model.weight += 1
    own = model.weight.detach().clone()
    inside = []

    def evaluate_and_fail():
        with average.applied():
            inside.append(model.weight.detach().clone())
            raise KeyError

    with pytest.raises(KeyError):
        evaluate_and_fail()
    assert not torch.equal(inside[0], own)
    assert torch.equal(model.weight, own)


def test_a_skipped_update_does_not_count():
    model = nn.Linear(2, 2)
    average = WeightAverage(model, 0.5)
    rules = UpdateRules(on_nonfinite="skip")
    updater = Updater(model, torch.optim.SGD(model.parameters(), lr=0.1), rules, torch.device("cpu"), average=average)
    updater.update({"loss": Loss(model(torch.full((1, 2), float("nan"))).sum(), 1)}, ["a"])
    assert average.trained_parameters() == {}
    updater.start_batch(1, 0.0)
    updater.update({"loss": Loss(model(torch.ones(1, 2)).sum(), 1)}, ["a"])
    assert torch.equal(average.model_state()["weight"], model.weight)


def read(name, epoch=2):
    folder = Path("outputs") / name / "checkpoints"
    model = torch.load(folder / f"model.{epoch:03d}.pt", weights_only=True)["model"]
    return model, torch.load(folder / f"model.{epoch:03d}.opt.pt", weights_only=True)


def scores(name):
    return [json.loads(line)["scores"] for line in Path(f"outputs/{name}/scores.jsonl").read_text().splitlines()]


def test_trains_the_same_and_evaluates_saves_and_forwards_the_average(command):
    assert command(*WORDS, "name=plain") == 0
    assert command(*WORDS, "name=ema", "ema.decay=0.9") == 0
    (plain, _), (averaged, content) = read("plain"), read("ema")
    for name, value in content[TRAINED].items():
        assert torch.equal(value, plain[name])  # the average changes nothing in the training
        assert not torch.equal(value, averaged[name])
    plain_scores, ema_scores = scores("plain"), scores("ema")
    assert [s["train"] for s in plain_scores] == [s["train"] for s in ema_scores]
    assert all(one["dev"] != two["dev"] for one, two in zip(plain_scores, ema_scores, strict=True))
    assert command("task=evaluate", "run=outputs/ema", "evaluate_data=dev") == 0
    evaluated = json.loads(Path("outputs/ema/evaluation.002.json").read_text())["scores"]["dev"]
    assert evaluated == ema_scores[-1]["dev"]


@pytest.mark.parametrize("extra", [(), ("grad_accum_steps=2", "on_nonfinite=skip")], ids=["plain", "accumulated"])
def test_resumed_anywhere_with_the_same_bits(command, monkeypatch, extra):
    words = (*WORDS, *extra, "ema={decay: 0.9}", "checkpoint_every.steps=1")
    assert command(*words, "name=whole") == 0
    save, saves = RunStore.save_within_epoch, []

    def save_and_die(self, trainer):
        save(self, trainer)
        saves.append(trainer.updater.num_updates)
        if len(saves) % 2 == 0:
            self.saver.wait()
            raise KeyboardInterrupt

    monkeypatch.setattr(RunStore, "save_within_epoch", save_and_die)
    starts = 1
    while command(*words, "name=parts") == 130:
        starts += 1
    assert starts >= 3
    (whole, whole_content), (parts, parts_content) = read("whole"), read("parts")
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert all(torch.equal(value, parts_content[TRAINED][name]) for name, value in whole_content[TRAINED].items())
    assert scores("whole") == scores("parts")


def test_switched_on_and_off_when_allowed(command):
    words = (*WORDS, "learning_rate_control=constant")
    assert command(*words, "name=x", "num_epochs=1") == 0
    assert command(*words, "name=x", "num_epochs=2", "ema.decay=0.9") == 2
    assert command(*words, "name=x", "num_epochs=2", "ema.decay=0.9", "allow_changed=[ema]") == 0
    assert command(*words, "name=x", "num_epochs=3", "allow_changed=[ema]") == 0
    assert command(*words, "name=plain", "num_epochs=3") == 0
    (switched, _), (plain, _) = read("x", 3), read("plain", 3)
    assert all(torch.equal(value, switched[name]) for name, value in plain.items())


def test_a_decay_out_of_range_is_an_error(command, capsys):
    assert command(*WORDS, "ema.decay=1.5") == 2
    assert "ema.decay=1.5" in capsys.readouterr().err
