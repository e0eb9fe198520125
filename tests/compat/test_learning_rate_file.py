"""RETURNN's learning-rate file: its own files are read, ours are read by it, and nothing in it is run."""

import json
import math
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn_hydra.compat.learning_rate_file import (
    EpochData,
    LearningRateFileError,
    better_repr,
    format_learning_rates,
    history,
    parse_learning_rates,
    read_learning_rate_file,
    write_learning_rate_file,
)
from returnn_hydra.engine.records import EpochRecord
from returnn_hydra.engine.scores import Score
from returnn_hydra.optim.learning_rate_control import Newbob

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden" / "lr_control.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["files"], ids=lambda case: case["file"])
def test_returnn_files(case):
    entries = parse_learning_rates(case["text"])
    epochs = [str(epoch) for epoch in entries]
    assert [entry.learning_rate for entry in entries.values()] == [case["lrs"][epoch] for epoch in epochs]
    assert [entry.scores for entry in entries.values()] == [case["errors"][epoch] for epoch in epochs]
    assert [entry.meta for entry in entries.values()] == [case["meta"][epoch] for epoch in epochs]
    assert format_learning_rates(entries) == case["text"]


def test_a_restart_goes_on_where_returnn_would():
    case = GOLDEN["files"][0]
    config = case["config"]
    control = Newbob(
        learning_rate=config["learning_rate"],
        decay=config["learning_rate_decay"],
        threshold=config["newbob_relative_error_threshold"],
        score="dev_loss_ce",
    )
    past = history(parse_learning_rates(case["text"]))
    assert control.learning_rate(len(past) + 1, past) == case["next_lr_after_restart"]


@pytest.mark.parametrize("name", GOLDEN["old_formats"])
def test_old_files(name):
    case = GOLDEN["old_formats"][name]
    entries = parse_learning_rates(case["text"])
    if name == "old_scalar":  # the installed RETURNN can't read its second line; older ones wrote it
        assert entries == {
            1: EpochData(0.0008, {"old_format_score": 1.5}),
            2: EpochData(0.0007, {"old_format_score": 1.4}),
        }
        return
    assert {str(epoch): entry.learning_rate for epoch, entry in entries.items()} == case["lrs"]
    errors = {str(epoch): {key: str(value) for key, value in entry.error.items()} for epoch, entry in entries.items()}
    assert errors == case["errors"]


@pytest.mark.parametrize("case", [case for case in GOLDEN["better_repr"] if not case["py"].startswith("np.")])
def test_layout(case):
    assert better_repr(parse_value(case["py"])) == case["text"]


def parse_value(text):
    return parse_learning_rates("{1: EpochData(0.1, {'x': " + text + "})}")[1].error["x"]


def test_layout_of_special_values():
    assert better_repr({1: math.nan, 2: -math.inf}) == "{1: float('nan'), 2: float('-inf')}"
    assert better_repr({"a": "x" * 32}) == "{'a': '" + "x" * 32 + "'}"
    assert better_repr({"a": "x" * 33}) == "{\n'a': '" + "x" * 33 + "',\n}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("float('nan')", "nan"),
        ("-inf", "-inf"),
        ("np.float32(0.5)", "0.5"),
        ("numpy.float64(-2)", "-2.0"),
        ("np.int64(3)", "3"),
        ("np.nan", "nan"),
        ("np.bool_(True)", "True"),
        ("{'a': (1, [None])}", "{'a': (1, [None])}"),
        ("set([\n1,\n])", "[1]"),
    ],
)
def test_spellings_of_values(text, value):
    assert repr(parse_value(text)) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{1: 2}",
        "{1: EpochData()}",
        "{'a': EpochData(0.1, {})}",
        "{1: EpochData('0.1', {})}",
        "{1: EpochData(True, {})}",
        "{1: EpochData(0.1, {1: 2})}",
        "{1: EpochData(0.1, {}, 3)}",
        "{1: EpochData(0.1, foo={})}",
        "{1: EpochData(0.1, learningRate=0.2)}",
        "{1: EpochData(0.1, {'x': __import__('os').system('touch hacked')})}",
        "{1: EpochData(0.1, {'x': open('hacked', 'w')})}",
        "{1: EpochData(0.1, {'x': [y for y in (1,)]})}",
        "{1: EpochData(0.1, {'x': float('one')})}",
        "{1: EpochData(0.1, {'x': 'a'.upper()})}",
        "{**{}}",
        "{1: EpochData(*[0.1])}",
        "{1: EpochData(0.1, **{})}",
        "{1: EpochData(" + "9" * 400 + ", {})}",
        "{1: EpochData(0.1, {'x': " + "[" * 300 + "]" * 300 + "})}",
    ],
)
def test_everything_else_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text(text)
    with pytest.raises(LearningRateFileError, match=r"^file"):
        read_learning_rate_file("file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


SCORES = st.dictionaries(
    st.text(max_size=8), st.floats() | st.none() | st.text(max_size=40) | st.integers(), max_size=4
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.integers(-3, 2000), st.builds(EpochData, st.floats(0, 1), SCORES), max_size=4))
def test_written_is_read(entries):
    again = parse_learning_rates(format_learning_rates(entries))
    assert repr(again) == repr(dict(sorted(entries.items()))) or better_repr(again) == better_repr(entries)


@settings(deadline=None, max_examples=150)
@given(st.text(max_size=40) | st.text("{}[]():,1'EpochDat.=-\n", max_size=40))
def test_any_text_gives_entries_or_the_error(text):
    try:
        entries = parse_learning_rates(text)
    except LearningRateFileError:
        return
    assert all(isinstance(entry, EpochData) for entry in entries.values())


def records():
    return [
        EpochRecord(
            epoch,
            0.1 / epoch,
            {"train": {"ce": Score(6.0, 4.0)}, "dev": {"ce": Score(3.0, 2.0 * epoch), "fer": Score(0.0, 0.0)}},
            step=10 * epoch,
            seconds={"train": 3.4, "dev": 1.0},
        )
        for epoch in (1, 2)
    ]


def test_our_records(tmp_path):
    write_learning_rate_file(tmp_path / "learning_rates", records())
    entries = read_learning_rate_file(tmp_path / "learning_rates")
    assert entries[2].learning_rate == 0.05
    assert entries[2].scores["dev_loss_ce"] == 0.75
    assert math.isnan(entries[2].scores["dev_loss_fer"])
    assert (entries[2].meta["global_train_step"], entries[2].meta["global_train_step_end"]) == (10, 20)


@pytest.mark.peer
def test_returnn_reads_our_file(tmp_path):
    """RETURNN_PYTHON: the interpreter of an environment with RETURNN."""
    python = os.environ.get("RETURNN_PYTHON")
    if not python:
        pytest.skip("set RETURNN_PYTHON to a Python that has the `returnn` package")
    write_learning_rate_file(tmp_path / "learning_rates", records())
    code = """if True:
        import sys
        from returnn.config import Config
        from returnn.learning_rate_control import load_learning_rate_control_from_config
        config = Config()
        config.update({"learning_rate_file": sys.argv[1], "learning_rate": 0.1})
        control = load_learning_rate_control_from_config(config)
        print({epoch: (data.learning_rate, data.error) for epoch, data in control.epoch_data.items()}, "END")
        control.save()
    """
    result = subprocess.run(
        [python, "-c", code, str(tmp_path / "learning_rates")], capture_output=True, text=True, timeout=200, check=True
    )
    entries = read_learning_rate_file(tmp_path / "learning_rates")  # as RETURNN wrote it again
    assert (tmp_path / "learning_rates").read_text() == format_learning_rates(entries)
    seen = {epoch: (entry.learning_rate, entry.scores) for epoch, entry in entries.items()}
    assert f"{seen} END" in result.stdout
