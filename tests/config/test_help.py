"""What `--help` prints, against what Hydra finds itself."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from returnn_hydra.config.help import help_text, options_by_group, wants_help
from returnn_hydra.config.paths import config_dir

ROOT = Path(__file__).parents[2]


def test_the_groups_are_those_that_hydra_finds():
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        groups = set(loader.list_groups("")) - {"hydra", "schema"}
        expected = {group: options for group in groups if (options := loader.get_group_options(group))}
    assert len(expected) > 10
    assert options_by_group([config_dir()]) == expected


@pytest.mark.parametrize("words", [["--config-dir", "mine"], ["--config-dir=mine"], ["-cd", "mine"]])
def test_an_own_folder_adds_its_options(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "model" / "small").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "my_model.yaml").write_text("x: 1\n")
    (tmp_path / "mine" / "model" / "small" / "tiny.yaml").write_text("x: 1\n")
    assert ", my_model, " in help_text(words)
    assert "\nmodel/small: tiny\n" in help_text(words)
    assert "my_model" not in help_text([])


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["nothing=1", "--help"]])
def test_as_a_program(words):
    command = [sys.executable, str(ROOT / "run.py"), *words]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == help_text(words) + "\n"
    assert "\noptimizer: adam, " in result.stdout


def test_other_words_do_not_ask_for_help():
    assert not wants_help(["--hydra-help", "name=--help", "--cfg", "job"])


def test_version(command, capsys):
    assert command("--version") == 0
    assert capsys.readouterr().out.startswith("returnn-hydra 0.")
