"""A missing optional package: one line that says how to get it, and exit code 2."""

import sys

import pytest

from returnn_hydra.extras import MissingExtra, require


def test_an_installed_package():
    assert require("json", "audio").loads("1") == 1


def test_missing_packages_name_the_extra():
    with pytest.raises(
        MissingExtra, match=r"^no_such_package needs the extra audio: pip install 'returnn-hydra\[audio\]'"
    ):
        require("no_such_package", extra="audio")


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("mlflow", ["callbacks=mlflow"]),
        ("torch.utils.tensorboard", ["callbacks=tensorboard"]),
        ("matplotlib", ["task=inspect"]),
    ],
)
def test_on_the_command_line(command, capsys, monkeypatch, package, words):
    monkeypatch.setitem(sys.modules, package, None)
    assert command("num_epochs=1", "model.hidden_dim=2", *words) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "pip install 'returnn-hydra[" in error
