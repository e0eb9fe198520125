"""The wheel holds every module, every YAML file and the embedded data, and nothing of the tests."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    for name in ("returnn_hydra", "conf", "pyproject.toml", "setup.py", "README.md"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    target = tmp_path_factory.mktemp("wheel")
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(target)]
    subprocess.run([*words, str(source)], check=True)
    (file,) = target.glob("*.whl")
    return file


def test_wheel_is_complete(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "returnn_hydra").rglob("*.py")}
    yamls = {f"returnn_hydra/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    data = {path.relative_to(ROOT).as_posix() for path in (ROOT / "returnn_hydra").rglob("*.hdf")}
    assert data
    assert not (modules | yamls | data) - names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    assert any(name.endswith("japanese_vowels/README.md") for name in names)


def test_installed_program_runs_from_any_folder_with_a_users_conf(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    (tmp_path / "my_conf/optimizer").mkdir(parents=True)
    (tmp_path / "my_conf/optimizer/mine.yaml").write_text("_target_: my_code.Mine\n")
    (tmp_path / "my_code.py").write_text("import torch\nclass Mine(torch.optim.Adagrad): pass\n")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/returnn-hydra"  # as pip makes it: the current folder is not in sys.path
    program.write_text("import returnn_hydra.cli as cli; assert 'site' in cli.__file__; cli.main()")
    words = ["task=train", "optimizer=mine", "num_epochs=1", "model.hidden_dim=4", "--config-dir", "my_conf"]
    words += ["allow_targets=[my_code.]"]
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(program), *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.glob("outputs/*/checkpoints/model.001.pt"))
