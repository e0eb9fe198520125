"""The table of RETURNN's keys: nothing is silently ignored."""

import re

import pytest

from returnn_hydra.config.errors import ConfigError
from returnn_hydra.config.returnn_config import load_returnn_config
from returnn_hydra.config.returnn_keys import KEYS, check_keys, declared_types, table
from returnn_hydra.tasks.returnn.session import surroundings

PYTHON = """#!rnn.py
import os
from functools import partial
task = "train"
num_epoch = 5
train_data = {}
num_classes = 7
learning_rate = 1
batch_size = {"data": 100}
get_model = lambda **kwargs: (num_classes, train_data)
tf_log_memory_usage = True
window = 1
_private = 3
"""


def load(tmp_path, text, *overrides):
    (tmp_path / "my.config").write_text(text)
    return load_returnn_config([tmp_path / "my.config"], overrides, declared=declared_types())


def test_python_helpers_are_legal_but_typos_are_not(tmp_path):
    config = load(tmp_path, PYTHON)
    report = check_keys(config)
    assert report.warnings == ["unknown key 'num_epoch'; did you mean 'num_epochs'?"]
    assert report.notes == [
        "tf_log_memory_usage has no effect: only concerns TensorFlow's memory, sessions or debugging"
    ]
    assert isinstance(config.typed_value("learning_rate"), float)
    with pytest.raises(ConfigError, match="unknown key 'num_epoch'"):
        check_keys(load(tmp_path, PYTHON), strict=True)


def test_what_nothing_reads_is_told(tmp_path):
    text = (
        "#!rnn.py\nfrom returnn.config import get_global_config\nbatch_drop_last = True\ndebug = 1\nhidden = 3\n"
        "_mine = 4\nasked = 5\n\n\ndef get_model(**_):\n    return hidden, get_global_config().int('asked', 1)\n"
    )
    (tmp_path / "my.config").write_text(text)
    config = load_returnn_config([tmp_path / "my.config"], active=surroundings)
    report = check_keys(config)
    assert report.warnings == [
        f"unknown key '{name}': nothing in the config's files reads it either" for name in ("batch_drop_last", "debug")
    ]


def test_elsewhere_every_unknown_key_is_a_warning(tmp_path):
    assert check_keys(load(tmp_path, '{"qqzz": 1}')).warnings == ["unknown key 'qqzz'"]
    report = check_keys(load(tmp_path, "num_epocs 3\n"))
    assert report.warnings == ["unknown key 'num_epocs'; did you mean 'num_epochs'?"]
    report = check_keys(load(tmp_path, PYTHON, ("max_seq", "3")))
    assert "unknown key 'max_seq'; did you mean 'max_seqs'?" in report.warnings


def test_wrong_types_and_refused_keys_come_together(tmp_path):
    text = (
        "#!rnn.py\nnum_epochs = '5'\nmax_seqs = None\nwindow = 3\ntruncation = -1\ngrad_clip = 5\nadasecant = False\n"
    )
    with pytest.raises(ConfigError) as caught:
        check_keys(load(tmp_path, text))
    lines = str(caught.value).split("\n")
    assert lines[0] == "num_epochs='5': expected int"
    assert lines[1].startswith("window=3: windows of frames are not made")
    assert lines[2].endswith("did you mean gradient_clip?")
    assert len(lines) == 3


def test_command_line_values_have_the_declared_types(tmp_path):
    overrides = [
        ("learning_rate", "1"),
        ("learning_rates", "[0.1, 0.2]"),
        ("cleanup_old_models", "{'keep_last_n': 3}"),
        ("optimizer", "{class: adamw, epsilon: 1e-8}"),
        ("batching", "laplace:.1000"),
        ("max_seqs", "none"),
        ("train", "a.hdf"),
        ("use_tensorboard", "on"),
        ("device", "cpu"),
    ]
    values = load(tmp_path, "", *overrides).to_dict()
    assert values == {
        "learning_rate": 1.0,
        "learning_rates": [0.1, 0.2],
        "cleanup_old_models": {"keep_last_n": 3},
        "optimizer": {"class": "adamw", "epsilon": 1e-8},
        "batching": "laplace:.1000",
        "max_seqs": None,
        "train": "a.hdf",
        "use_tensorboard": True,
        "device": "cpu",
    }
    with pytest.raises(ConfigError, match=r"\+\+num_epochs five: 'five' is no int"):
        load(tmp_path, "", ("num_epochs", "five"))


def test_the_ranking_of_public_setups_is_covered(shared):
    text = (shared / "returnn-usage.md").read_text()
    section = text[text.index("## Config keys") : text.index("## Data set classes")]
    names = re.findall(r"`([^`]+)` \d+/", section)
    assert len(names) > 100
    assert [name for name in names if name not in KEYS] == []


def test_table_has_every_key():
    assert len(table().splitlines()) == len(KEYS) + 2
