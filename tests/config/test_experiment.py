"""Another choice of a group beside an experiment: its values for its own choice are an error, never kept silently."""

import pytest

from returnn_hydra.config.errors import ConfigError
from returnn_hydra.config.experiment import check_experiment

BASE = """# @package _global_
defaults:
  - override /model: conv
  - override /optimizer: adamw
  - override /datasets: digits
model:
  encoder: {parts: [1, 2], width: 3}
  head: {_target_: a.Head, size: 2}
optimizer: {weight_decay: 0.1}
"""
ABOVE = """# @package _global_
defaults: [base, _self_]
model: {dropout: 0.3}
"""
CHOICES = {"experiment": "base", "model": "conv", "optimizer": "adamw", "datasets": "digits"}


@pytest.fixture
def folder(tmp_path):
    for name, text in {"base": BASE, "above": ABOVE}.items():
        (tmp_path / "experiment").mkdir(exist_ok=True)
        (tmp_path / "experiment" / f"{name}.yaml").write_text(text)
    return tmp_path


def message(folder, words=(), **choices):
    with pytest.raises(ConfigError) as caught:
        check_experiment({**CHOICES, **choices}, words, [folder])
    return str(caught.value)


def test_its_own_choices_and_groups_without_values_are_no_question(folder):
    check_experiment(CHOICES, ["experiment=base"], [folder])
    check_experiment({**CHOICES, "datasets": "an4"}, ["datasets=an4"], [folder])
    check_experiment({**CHOICES, "experiment": None, "model": "x"}, ["model=x"], [folder])
    check_experiment({**CHOICES, "experiment": "elsewhere", "model": "x"}, ["model=x"], [folder])


def test_every_value_that_would_stay_is_named(folder):
    text = message(folder, ["model=blstm"], model="blstm")
    assert text.startswith("model=blstm: experiment=base has values for its own model=conv, which would stay: ")
    assert "model.encoder.parts, model.encoder.width, model.head; give" in text
    assert "optimizer.weight_decay" in message(folder, optimizer="sgd")


def test_values_of_the_experiments_it_builds_on_count(folder):
    text = message(folder, experiment="above", model="blstm")
    assert "experiment=above has values for its own model=conv" in text
    assert "model.dropout, model.encoder.parts" in text


def test_what_the_command_line_gives_is_settled(folder):
    words = ["model=blstm", "model.encoder={a: 1}"]
    assert "would stay: model.head;" in message(folder, words, model="blstm")
    check_experiment({**CHOICES, "model": "blstm"}, [*words, "++model.head=null"], [folder])


def test_on_the_command_line(command, capsys):
    assert command("experiment=digits_ctc", "model=conformer_ctc") == 2
    error = capsys.readouterr().err
    assert "experiment=digits_ctc has values for its own model=time_conv_ctc" in error
    assert "model.encoder.parts" in error
