"""RETURNN's config files: its own results for the same files and command lines, and errors that say where."""

import contextlib
import json
import pickle
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn_hydra.config.command_line import parse_command_line
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.config.literals import to_bool
from returnn_hydra.config.returnn_config import detect_syntax, load_returnn_config
from returnn_hydra.config.text_error import ConfigTextError

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden" / "returnn_config.json").read_text())
DECLARED = {
    "num_epochs": int,
    "batch_size": int | dict | None,
    "learning_rate": float,
    "learning_rates": list[float] | dict | None,
    "chunking": str | dict | None,
}
MISSING_TYPED = {"typed_value", "is_typed"}
"""RETURNN loses line-based values and new keys of the command line here; ours are there, with their type."""


@pytest.fixture
def files(tmp_path, monkeypatch):
    for name, text in GOLDEN["files"].items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)


def load(*words, **options):
    line = parse_command_line(words)
    return load_returnn_config(line.files, line.overrides, declared=DECLARED, **options)


def plain(value):
    """The golden file's form of a value."""
    for kind in (list, tuple, dict):
        if isinstance(value, kind):
            items = (
                {key: plain(item) for key, item in value.items()} if kind is dict else [plain(item) for item in value]
            )
            return {kind.__name__: items}
    return value


CASES = [case for case in GOLDEN["cases"] if "not python (" not in case["argv"]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case["argv"]))
def test_returnn_results(case, files):
    config = load(*case["argv"])
    for getter, arguments, expected in case["get"]:
        asked = (getter, *arguments)
        if getter in MISSING_TYPED and arguments[0] in config.strings:
            continue
        if isinstance(expected, dict) and "raises" in expected:
            if asked == ("int_pair", "chunking"):  # RETURNN has no pairs as texts in Python files
                assert config.int_pair("chunking") == (100, 50)
            else:
                with pytest.raises(ConfigError, match=arguments[0]):
                    getattr(config, getter)(*arguments)
            continue
        assert plain(getattr(config, getter)(*arguments)) == expected, asked
    typed = sorted(set(config.keys()) - set(config.strings))
    assert typed == [key for key in case["typed_keys"] if key != "os"]  # a module is no option
    if "get_model(epoch=3,step=0)" in case:
        assert config.typed_value("get_model")(epoch=3, step=0) == case["get_model(epoch=3,step=0)"]
    if "f(1)" in case:
        assert config.typed_value("f")(1) == case["f(1)"]
    if case["__name__"]:
        assert config.typed_value("__name__") == case["__name__"]


@pytest.mark.parametrize(("text", "value"), GOLDEN["to_bool"].items())
def test_truth_words(text, value):
    if value == "ValueError":
        with pytest.raises(ValueError, match="expected one of"):
            to_bool(text)
    else:
        assert to_bool(text) is value


def test_syntax_by_content_and_name():
    words = {"py": "python", "js": "json", "txt": "lines"}
    found = {name: detect_syntax(text) for name, text in GOLDEN["files"].items()}
    assert found == {name: words[word] for name, word in GOLDEN["file_type"].items()}
    assert detect_syntax("x = 1", "a.py") == "python"
    assert detect_syntax("") == "lines"


def test_line_values_get_their_types(files):
    config = load("lines.config", "++foo", "[1, {a: none}]")
    values = config.to_dict()
    assert values["num_epochs"] == 3
    assert values["learning_rates"] == [0.1, 0.2]
    assert values["chunking"] == "100:50"  # declared as a text
    assert values["hidden_size"] == [100, 200, 300]
    assert values["use_x"] is True
    assert values["train"] == ["data/a.hdf", "data/b.hdf"]
    assert values["foo"] == [1, {"a": None}]


def test_command_line_keeps_types(tmp_path, files):
    config = load(
        "py.config", "++use_y", "true", "++learning_rate", "1", "++glob", "5", "++name", "7", "++max_seqs", "+-3"
    )
    values = {key: config.typed_value(key) for key in ("use_y", "learning_rate", "glob", "name", "max_seqs")}
    assert values == {"use_y": True, "learning_rate": 1.0, "glob": 5, "name": "7", "max_seqs": -3}
    assert isinstance(values["learning_rate"], float)
    assert config.typed_value("get_model")(epoch=3, step=0) == 15  # its global is the overridden one
    assert load("py.config", "++train", "{'class': 'HDFDataset', files: [a]}").typed_value("train") == {
        "class": "HDFDataset",
        "files": ["a"],
    }
    assert load("py.config", "++learning_rates", "0.5,0.25").typed_value("learning_rates") == [0.5, 0.25]


def test_nothing_is_evaluated(files, tmp_path):
    text = "__import__('os').mkdir('hacked')"
    assert load("py.config", "++name", text).typed_value("name") == text
    for key in ("num_epochs", "train", "use_x", "learning_rates"):
        with pytest.raises(ConfigError, match=key):
            load("py.config", f"++{key}", text)
    assert not (tmp_path / "hacked").exists()


def test_a_value_of_the_wrong_type_is_an_error(files):
    with pytest.raises(ConfigError, match=r"\+\+batch_size not python \(: 'not python \('.*int or dict or None"):
        load("py.config", "++batch_size", "not python (")
    with pytest.raises(ConfigError, match=r"\+\+use_x maybe: 'maybe' is no bool"):
        load("py.config", "++use_x", "maybe")
    with pytest.raises(ConfigError, match="a dict, as in the file"):
        load("py.config", "++train", "a.hdf")


def test_the_config_sees_the_command_line_and_the_active_context(files, tmp_path):
    (tmp_path / "a.config").write_text(
        "#!rnn.py\nimport active_config\nnum = config.int('num', 7)\nlate = lambda: active_config.current\n"
        "seen = active_config.current is config\n"
    )

    @contextlib.contextmanager
    def active(config):
        module = type(sys)("active_config")
        module.current = config
        sys.modules["active_config"] = module
        try:
            yield
        finally:
            del sys.modules["active_config"]

    config = load("a.config", "++num", "3", active=active)
    assert (config.typed_value("num"), config.typed_value("seen")) == (3, True)
    assert "active_config" not in sys.modules
    assert sorted(config.keys()) == ["late", "num", "seen"]


def test_functions_and_classes_of_a_config_can_be_pickled(tmp_path):
    (tmp_path / "a.config").write_text(
        "#!rnn.py\nfrom __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Point:\n    x: int = 1\n"
    )
    config = load_returnn_config([tmp_path / "a.config"])
    point = config.typed_value("Point")(x=4)
    assert pickle.loads(pickle.dumps(point)) == point


def test_config_split_over_a_package(tmp_path):
    package = tmp_path / "my_setup_pkg" / "exp"
    package.mkdir(parents=True)
    (tmp_path / "my_setup_pkg" / "__init__.py").write_text("base = 10\n")
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text("from .. import base\ndef get_model(**_): return base\n")
    (package / "train.py").write_text(
        "from .model import get_model\nimport my_setup_pkg.exp.model as m\nnum_epochs = 5\n"
    )
    config = load_returnn_config([package / "train.py"], [("num_epochs", "6")])
    assert (config.typed_value("num_epochs"), config.typed_value("get_model")()) == (6, 10)
    assert sorted(config.keys()) == ["get_model", "num_epochs"]
    (package / "train.py").write_text("num_epochs = 7\n")
    assert load_returnn_config([package / "train.py"]).typed_value("num_epochs") == 7  # not the cached module


def test_include(tmp_path, monkeypatch):
    folder = tmp_path / "sub"
    folder.mkdir()
    (folder / "base.config").write_text("num_epochs 3\nlearning_rate 0.5\n")
    (folder / "model.config").write_text("#!rnn.py\ndim = 5\n")
    (tmp_path / "top.config").write_text("num_epochs 9\ninclude sub/base.config,sub/model.config\nlearning_rate 0.1\n")
    (folder / "next_to.config").write_text("include base.config\n")
    monkeypatch.chdir(tmp_path)
    config = load_returnn_config(["top.config"], declared=DECLARED)
    assert config.to_dict() == {"num_epochs": 3, "learning_rate": 0.1, "dim": 5}
    assert config.files == ["top.config", "sub/base.config", "sub/model.config"]
    assert load_returnn_config(["sub/next_to.config"]).int("num_epochs", 0) == 3
    (tmp_path / "loop.config").write_text("x 1\ninclude loop.config\n")
    with pytest.raises(ConfigTextError, match=r"loop\.config, line 2.*includes itself"):
        load_returnn_config(["loop.config"])
    (tmp_path / "loop.config").write_text("include nothere\n")
    with pytest.raises(ConfigTextError, match=r"include nothere: no such file"):
        load_returnn_config(["loop.config"])


def test_later_files_override(tmp_path):
    (tmp_path / "a.config").write_text("#!rnn.py\nx = 1\ny = 2\n")
    (tmp_path / "b.config").write_text('{"y": 3, "z": "http://a//b" /* : */ } // end')
    (tmp_path / "c.config").write_text("x 5\n")
    config = load_returnn_config([tmp_path / name for name in ("a.config", "b.config", "c.config")])
    assert config.to_dict() == {"x": 5, "y": 3, "z": "http://a//b"}


@pytest.mark.parametrize(
    ("name", "text", "line", "column", "message"),
    [
        ("a.config", "num_epochs 3\n\nlonely\n", 3, 1, "the key 'lonely' has no value; write `key value`"),
        ("a.config", "  num_epochs = 3\n", 1, 14, "'=' after the key 'num_epochs'"),
        ("a.config", "num_epochs three\n", 1, 1, "num_epochs: 'three'.*is no int"),
        ("a.config", '{"a": 1,\n "b": True}', 2, 7, "JSON writes true"),
        ("a.config", '{"a": [1,]}', 1, None, "no comma before a closing bracket"),
        ("a.config", "{'a': 1}", 1, 2, "double quotes"),
        ("a.config", '{"a": 1} # c', 1, 10, "comments start with //"),
        ("a.config", '{"a": 1 /* open', 1, 9, r"no \*/"),
        ("a.config", "{" * 100_000, 1, None, "."),
        ("a.config", '{"a": ' + "9" * 5000 + "}", 1, 1, "digits"),
        ("a.config", "#!rnn.py\nx = = 3\n", 2, 5, "Python: invalid syntax"),
        ("a.py", "x = '\\N{nothing}'", 1, None, "Python"),
    ],
)
def test_errors_have_a_place(tmp_path, name, text, line, column, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigTextError, match=message) as caught:
        load_returnn_config([tmp_path / name], declared=DECLARED)
    assert caught.value.line == line
    assert column is None or caught.value.column == column
    assert str(tmp_path / name) in str(caught.value)


def test_an_exception_in_a_python_config_names_its_line(tmp_path):
    (tmp_path / "a.config").write_text("#!rnn.py\ndef f():\n    return nothing\n\nx = f()\n")
    with pytest.raises(ConfigError, match=r"a\.config, line 3: NameError: name 'nothing' is not defined") as caught:
        load_returnn_config([tmp_path / "a.config"])
    assert isinstance(caught.value.__cause__, NameError)


def test_unreadable_files(tmp_path):
    (tmp_path / "my.config").write_bytes(b"a \xff\n")
    with pytest.raises(ConfigError, match="no UTF-8 text"):
        load_returnn_config([tmp_path / "my.config"])
    with pytest.raises(ConfigError, match=r"No such file.*did you mean 'my\.config'"):
        load_returnn_config([tmp_path / "my.confg"])
    with pytest.raises(ConfigError, match="directory"):
        load_returnn_config([tmp_path])


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=60) | st.text('{}[]",:#/*\n ab1=', max_size=60) | st.text("key 1,#\n=include", max_size=40))
def test_any_text_gives_values_or_a_config_error(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "any.config"
    if detect_syntax(text) == "python":
        return
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(ConfigError):
        assert isinstance(load_returnn_config([file]).to_dict(), dict)
