"""Runs RETURNN configurations in a folder of their own."""

from pathlib import Path

import pytest

from returnn_hydra.compat.learning_rate_file import read_learning_rate_file
from returnn_hydra.tasks.returnn.session import open_session
from returnn_hydra.tasks.returnn_command import run_session

CONFIGS = Path(__file__).parent / "configs"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(config, key=value, ...) -> what the task returns; the current folder is a new one."""
    monkeypatch.chdir(tmp_path)

    def run_config(config, **values):
        path = Path(config) if Path(config).exists() else CONFIGS / config
        overrides = [(key, str(value)) for key, value in values.items()]
        return run_session(open_session([path], [("log_verbosity", "1"), *overrides]))

    return run_config


@pytest.fixture
def scores():
    """scores(file) -> {epoch: (learning rate, {key: score})}."""

    def read(file="net/learning_rates"):
        return {epoch: (data.learning_rate, data.scores) for epoch, data in read_learning_rate_file(file).items()}

    return read
