"""Every branch of the modules that write and read state is run by the tests in tests/engine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = ("checkpoint", "files", "foreign", "manifest", "retention", "saver", "score_file", "tensor_file")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_branch_of_the_store_is_covered(tmp_path):
    settings = tmp_path / "coveragerc"
    included = "".join(f"\n  */returnn_hydra/engine/{name}.py" for name in MODULES)
    settings.write_text(f"[run]\nbranch = True\ndata_file = {tmp_path}/data\ninclude ={included}\n")
    tests = [str(ROOT / "tests" / "engine" / f"test_{name}.py") for name in MODULES]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def coverage(*words):
        command = [sys.executable, "-m", "coverage", *words]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    run = coverage("run", f"--rcfile={settings}", "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert run.returncode == 0, run.stdout
    report = coverage("report", f"--rcfile={settings}", "-m", "--fail-under=100")
    assert report.returncode == 0, report.stdout
    assert all(f"{name}.py" in report.stdout for name in MODULES)
