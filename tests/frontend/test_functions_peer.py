"""Outputs and gradients of the most used rf functions against the installed RETURNN.

Run with RETURNN_PYTHON=<interpreter of an environment with RETURNN> and `-m peer`.
"""

import importlib.util
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from returnn_hydra.config.returnn_values import ReturnnConfig
from returnn_hydra.frontend.ambient import ambient_state
from returnn_hydra.tasks.returnn.session import surroundings

TABLE = Path(__file__).parent / "rf_table.py"


def ours():
    with surroundings(ReturnnConfig({})), ambient_state(run_ctx=None):
        spec = importlib.util.spec_from_file_location("rf_table", TABLE)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.run()


def test_every_call_of_the_table_works():
    found = ours()
    assert {key: str(value) for key, value in found.items() if key.endswith(":error")} == {}
    assert sum(key.endswith(":output") for key in found) >= 90
    assert all(np.isfinite(value).all() for value in found.values())


@pytest.mark.peer
def test_outputs_and_gradients(tmp_path):
    if "RETURNN_PYTHON" not in os.environ:
        pytest.skip("RETURNN_PYTHON does not name an interpreter with RETURNN")
    command = [os.environ["RETURNN_PYTHON"], str(TABLE), str(tmp_path / "theirs.npz")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    theirs, found = dict(np.load(tmp_path / "theirs.npz")), ours()
    assert {key: str(value) for key, value in theirs.items() if key.endswith(":error")} == {}
    assert sorted(found) == sorted(theirs)
    for key, expected in theirs.items():
        np.testing.assert_allclose(found[key], expected, rtol=1e-5, atol=1e-5, err_msg=key)
