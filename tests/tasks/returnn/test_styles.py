"""Configs in the public styles: train, restart, forward."""

from pathlib import Path

import pytest
import torch


def parameters(file):
    return torch.load(file, weights_only=True)["model"]


@pytest.mark.parametrize("config", ["plain_torch.config", "rf_modules.config"])
def test_restarted_is_as_if_never_stopped(run, scores, config):
    run(config, num_seqs=60, num_epochs=3, model="whole/model", learning_rate_file="whole/lr")
    run(config, num_seqs=60, num_epochs=2)
    run(config, num_seqs=60, num_epochs=3)
    assert scores("net/learning_rates") == scores("whole/lr")
    whole = parameters("whole/model.003.pt")
    assert whole and all(torch.equal(whole[name], value) for name, value in parameters("net/model.003.pt").items())


def test_finished_training_has_nothing_to_do(run):
    run("plain_torch.config", num_seqs=30, num_epochs=1)
    before = Path("net/model.001.pt").read_bytes()
    run("plain_torch.config", num_seqs=30, num_epochs=1)
    assert Path("net/model.001.pt").read_bytes() == before


def test_checkpoint_has_returnns_layout(run):
    run("plain_torch.config", num_seqs=60, num_epochs=2)
    content = torch.load("net/model.002.pt", weights_only=True)
    assert content["epoch"] == 2 and content["step"] == 12
    assert list(content["model"])[:2] == ["layers.0.weight", "layers.0.bias"]
    optimizer = torch.load("net/model.002.opt.pt", weights_only=True)
    assert optimizer["optimizer_class_name"] == "Adam" and optimizer["param_names"] == list(content["model"])


def test_forward_plain_torch(run):
    run("plain_torch.config", num_seqs=60, num_epochs=1)
    assert run("plain_torch.config", num_seqs=60, task="forward") == 6
    lines = [line.split() for line in Path("out.txt").read_text().splitlines()]
    assert [line[0] for line in lines] == [f"seq-{i}" for i in range(6)]
    assert all(int(length) == len(labels) for _, length, _, labels in lines)


def test_forward_rf(run):
    run("rf_modules.config", num_seqs=60, num_epochs=1)
    assert run("rf_modules.config", num_seqs=60, task="forward") == 6
    assert len(Path("out.txt").read_text().splitlines()) == 6


def test_mini_returnn(run, scores):
    run("mini_returnn.config")
    found = scores("learning_rates")
    assert [rate for rate, _ in found.values()] == [0.001, 0.01, 0.005]
    assert found[3][1]["dev_loss_ce"] < found[1][1]["dev_loss_ce"]
    assert sorted(path.name for path in Path("net").glob("*.opt.pt")) == [f"epoch.00{n}.opt.pt" for n in (1, 2, 3)]
    assert run("mini_returnn.config", task="forward") == 5
    for line in Path("posteriors.txt").read_text().splitlines():
        _, length, mass = line.split()
        assert float(mass) == pytest.approx(int(length), rel=1e-4)
    run("mini_returnn.config", task="prior")
    assert sum(2.718281828 ** float(value) for value in Path("prior.txt").read_text().split()) == pytest.approx(
        1, abs=1e-4
    )
