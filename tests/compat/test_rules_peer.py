"""Our rules against the installed RETURNN on random configurations.

Run with RETURNN_PYTHON=<interpreter of an environment with RETURNN> and `-m peer`.
"""

import json
import os
import random
import subprocess

import pytest

from returnn_hydra.build import Builder
from returnn_hydra.compat.score_keys import error_key
from returnn_hydra.compat.training_options import training_options
from returnn_hydra.config.command_line import parse_command_line
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.config.returnn_config import load_returnn_config

pytestmark = pytest.mark.peer
LEARNING_RATES = """
import json, sys
from returnn.config import Config
from returnn.learning_rate_control import load_learning_rate_control_from_config

def run(case):
    config = Config()
    values = dict(case["config"])
    if isinstance(values.get("learning_rates"), dict):
        values["learning_rates"] = {int(epoch): rate for epoch, rate in values["learning_rates"].items()}
    config.update(values)
    control = load_learning_rate_control_from_config(config)
    rates, keys = [], []
    for epoch, scores in enumerate([*case["history"], {}], start=1):
        rates.append(control.get_learning_rate_for_epoch(epoch))
        if scores:
            control.set_epoch_error(epoch, scores)
            keys.append(control.get_error_key(epoch))
    return rates, keys

print("RESULT", json.dumps([run(case) for case in json.load(sys.stdin)]))
"""
COMMAND_LINES = """
import json, sys
from returnn.config import Config
from returnn.__main__ import init_config

GETTERS = json.loads(sys.argv[1])

def run(words):
    from returnn import __main__ as main
    init_config(command_line_options=words)
    found = []
    for getter, arguments in GETTERS:
        try:
            found.append(getattr(main.config, getter)(*arguments))
        except Exception as error:
            found.append({"error": type(error).__name__})
    return found

print("RESULT", json.dumps([run(words) for words in json.load(sys.stdin)]))
"""


def ask_returnn(code, cases, *words):
    python = os.environ.get("RETURNN_PYTHON")
    if not python:
        pytest.skip("set RETURNN_PYTHON to a Python that has the `returnn` package")
    result = subprocess.run(
        [python, "-c", code, *words], input=json.dumps(cases), capture_output=True, text=True, timeout=250, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.rpartition("RESULT ")[2])


def random_options(rng):
    choices = {
        "learning_rate": [0.01, 0.1, 1.0],
        "learning_rate_control": ["constant", "newbob", "newbob_abs", "newbob_multi_epoch", "newbob_multi_epoch"],
    }
    rarely = {
        "learning_rates": [[0.001, 0.002, 0.003], [0.5] * 6, {"3": 0.5, "6": 0.25}],
        "learning_rate_decay": [0.9, 0.7],
        "newbob_learning_rate_decay": [0.8],
        "learning_rate_growth": [1.1],
        "newbob_learning_rate_growth": [1.2],
        "min_learning_rate": [0.002],
        "newbob_relative_error_threshold": [0.0, -0.02],
        "newbob_error_threshold": [0.0, -0.1],
        "newbob_relative_error_div_by_old": [True],
        "learning_rate_control_relative_error_relative_lr": [True],
        "learning_rate_control_min_num_epochs_per_new_lr": [0, 1, 2, 3],
        "newbob_multi_num_epochs": [1, 2, 6],
        "newbob_multi_update_interval": [1, 2, 3],
        "newbob_relative_error_grow_threshold": [-0.05],
        "learning_rate_control_error_measure": ["dev_loss_fer", "dev_score", ["train_loss_ce", "dev_loss_ce"]],
    }
    options = {key: rng.choice(values) for key, values in choices.items()}
    options.update({key: rng.choice(values) for key, values in rarely.items() if rng.random() < 0.35})
    return options


def random_history(rng):
    score, history = 2.0, []
    for _ in range(rng.choice([6, 14])):
        score = rng.choice([score, score * rng.uniform(0.9, 1.05), score * 0.99, score - 0.1])
        scores = {"dev_loss_ce": score, "dev_loss_fer": rng.random(), "train_loss_ce": score * 0.9}
        history.append({} if rng.random() < 0.05 else scores)
    return history


def test_learning_rates_and_deciding_scores():
    rng = random.Random(1)
    cases = [{"config": random_options(rng), "history": random_history(rng)} for _ in range(200)]
    for case, (expected, keys) in zip(cases, ask_returnn(LEARNING_RATES, cases), strict=True):
        config = dict(case["config"])
        if isinstance(config.get("learning_rates"), dict):
            config["learning_rates"] = {int(epoch): rate for epoch, rate in config["learning_rates"].items()}
        options = training_options(config)
        control = Builder().build(options["learning_rate_control"], "control", learning_rate=options["learning_rate"])
        history = []
        for scores in [*case["history"], {}]:
            history.append((control.learning_rate(len(history) + 1, history), scores))
        assert [rate for rate, _ in history] == pytest.approx(expected, rel=1e-12), case
        measure = config.get("learning_rate_control_error_measure")
        assert [error_key(scores, measure) for scores in case["history"] if scores] == keys


NOT_FROM_TEXTS = {"error": "AssertionError"}
"""RETURNN takes no number out of a text in a Python file; we do."""
GETTERS = [
    *(
        ["value", [key, "none"]]
        for key in ("num", "rate", "flag", "name", "names", "nothing", "extra", "log_verbosity")
    ),
    *(["int", [key, 7]] for key in ("num", "extra", "log_verbosity", "missing")),
    *(["float", [key, 0.5]] for key in ("num", "rate", "extra", "missing")),
    *(["bool", [key, False]] for key in ("num", "flag", "extra")),
    *(["list", [key]] for key in ("names", "name", "extra", "missing")),
    ["is_true", ["flag"]],
    ["typed_value", ["num"]],
    ["typed_value", ["rate"]],
    ["opt_typed_value", ["name"]],
    ["int_pair", ["num"]],
    ["has", ["extra"]],
]
FILES = {
    "a.config": "#!rnn.py\nnum = 3\nrate = 0.5\nflag = True\nname = 'x,y'\nnames = ['a', 'b']\nnothing = None\n",
    "b.config": '{"num": 4, "rate": 1.5, "flag": false, "name": "z" /* c */}\n',
    "c.config": "num 5\nrate 2.5\nflag yes\nname hello you\nnames a,b\n",
    "d.config": "#!rnn.py\nnum = config.int('num', 1) + 1\nextra = config.value('extra', 'unset')\n",
}
WORDS = [
    [],
    ["++num", "8"],
    ["++num", "+-8"],
    ["++rate", "0.25"],
    ["++flag", "True"],
    ["++name", "p,q"],
    ["++names", "['c']"],
    ["++extra", "9"],
    ["++extra", "1"],
    ["-v", "4"],
    ["-x", "forward", "++extra", "0"],
]


def test_command_lines(tmp_path, monkeypatch):
    """The differences that returnn_config documents are left out."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    files = [["a.config"], ["b.config"], ["c.config"], ["a.config", "b.config"], ["a.config", "d.config"]]
    cases = [[*names, *words] for names in files for words in WORDS]
    for words, expected in zip(cases, ask_returnn(COMMAND_LINES, cases, json.dumps(GETTERS)), strict=True):
        line = parse_command_line(words)
        config = load_returnn_config(line.files, line.overrides)
        for (getter, arguments), value in zip(GETTERS, expected, strict=True):
            text = isinstance(config.values.get(arguments[0]), str)
            if (getter == "typed_value" and arguments[0] in config.strings) or (text and value == NOT_FROM_TEXTS):
                continue
            if isinstance(value, dict) and "error" in value:
                with pytest.raises(ConfigError):
                    getattr(config, getter)(*arguments)
                continue
            found = getattr(config, getter)(*arguments)
            assert (list(found) if isinstance(found, tuple) else found) == value, (words, getter, arguments)
