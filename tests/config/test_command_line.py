"""RETURNN's command line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from returnn_hydra.config.command_line import LONG, SHORT, help_text, parse_command_line
from returnn_hydra.config.errors import ConfigError


def test_files_options_and_keys():
    line = parse_command_line(
        ["a.config", "b.config", "-x", "forward", "-v5", "--num_epochs", "3", "++foo", "a b", "--config", "c"]
    )
    assert line.files == ["a.config", "b.config", "c"]
    assert line.overrides == [("task", "forward"), ("log_verbosity", "5"), ("num_epochs", "3"), ("foo", "a b")]
    assert parse_command_line(["-V"]).show_version


@pytest.mark.parametrize("word", ["+-3", "-3", "-.5", "-1e-3"])
def test_negative_numbers(word):
    assert parse_command_line(["a", "++x", word]).overrides == [("x", word.removeprefix("+"))]
    assert parse_command_line(["a", "-r", word]).overrides == [("learning_rate", word.removeprefix("+"))]


def test_long_options_may_be_shortened():
    assert parse_command_line(["--learn=0.1", "--verb", "4", "--ta", "eval"]).overrides == [
        ("learning_rate", "0.1"),
        ("log_verbosity", "4"),
        ("task", "eval"),
    ]
    with pytest.raises(ConfigError, match="--l may be --learning_rate, --load, --log, --log_verbosity"):
        parse_command_line(["--l", "3"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "++key"], r"\+\+key has no value"),
        (["a", "++key=3"], r"write \+\+key 3"),
        (["a", "++x", "1", "y", "2"], "'y' belongs to nothing"),
        (["a", "-v", "1", "y=2"], r"did you mean \+\+y 2\?"),
        (["a", "++x", "--task"], r"has no value, the next word is '--task'"),
        (["a", "++x", "++y", "1"], r"has no value, the next word is '\+\+y'"),
        (["a", "-s", "10"], r"no effect since RETURNN's Theano years; a key is set with \+\+hidden_sizes VALUE"),
        (["a", "-Q", "10"], "unknown option -Q; there is: -x task"),
        (["a", "--tsk", "10"], r"unknown option --tsk; did you mean 'task'\?.*\+\+tsk VALUE"),
        (["a", "++"], r"a key is missing after '\+\+'"),
        (["a", "+"], r"'\+' belongs to nothing"),
        (["a", "-"], "'-' belongs to nothing"),
    ],
)
def test_errors_teach(words, message):
    with pytest.raises(ConfigError, match=message):
        parse_command_line(words)


@given(st.lists(st.text(max_size=6) | st.sampled_from(["++x", "-v", "--task", "+-3", "-"]), max_size=6))
def test_any_words_give_a_result_or_a_config_error(words):
    try:
        line = parse_command_line(words)
    except ConfigError:
        return
    assert all(isinstance(text, str) for pair in line.overrides for text in pair)


def test_help_names_every_option():
    assert parse_command_line(["--help"]).show_help
    assert parse_command_line(["a.config", "-h"]).show_help
    text = help_text()
    for words in (*(f"-{letter} " for letter in SHORT), *(f"--{name}" for name in LONG), *SHORT.values()):
        assert words in text
