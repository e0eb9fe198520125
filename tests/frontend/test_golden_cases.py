"""RETURNN's own outputs and gradients, for every case and two behaviour versions (a config without one, and 30)."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from returnn_hydra.compat.import_hook import returnn_imports
from returnn_hydra.frontend.ambient import ambient_state

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[3] / "shared" / "golden"
NAMES = list(json.loads((GOLDEN / "cases_unset.json").read_text()))
VERSIONS = {"unset": None, "30": 30}


@pytest.fixture(scope="module", params=VERSIONS)
def golden(request):
    values = np.load(GOLDEN / f"cases_{request.param}.npz")
    return VERSIONS[request.param], dict(values), json.loads((GOLDEN / f"cases_{request.param}.json").read_text())


def compare(key, found, expected):
    if "logmel" in key:  # tiny energies are rounding noise of the FFT, which the logarithm blows up: compare energies
        found, expected = 10.0**found, 10.0**expected
    assert found.shape == expected.shape, key
    # Gradients of the large models add up to some hundreds; their rounding is relative to the largest.
    scale = max(1.0, float(np.abs(expected).max(initial=0))) if "/grad/" in key else 1.0
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * scale, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients(golden, cases, dump_cases, name):
    version, values, described = golden
    with returnn_imports(), ambient_state(behavior_version=version, run_ctx=None):
        arrays, description = dump_cases.evaluate(cases, name)
    assert description["params"] == described[name]["params"]
    for key, expected in described[name]["outputs"].items():
        assert description["outputs"][key] == expected, key
    for key in [k for k in values if k.startswith(f"{name}/")]:
        compare(key, arrays[key.removeprefix(f"{name}/")], values[key])


@pytest.mark.skipif(not SHARED.exists(), reason="the shared golden values are not here")
def test_shared_golden_values(cases, dump_cases):
    """The values of the issue, made by another version of RETURNN on another machine."""
    described = json.loads((SHARED / "rf_ops.json").read_text())["cases"]
    values = np.load(SHARED / "rf_ops.npz")
    for name in described:
        with returnn_imports(), ambient_state(run_ctx=None):
            arrays, description = dump_cases.evaluate(cases, name)
        assert description["params"] == described[name]["params"], name
        for key in described[name]["outputs"]:
            compare(f"{name}/{key}", arrays[f"out/{key}"], values[f"{name}/{key}"])


@pytest.mark.peer
@pytest.mark.parametrize("version", VERSIONS)
def test_live_returnn(tmp_path, cases, dump_cases, version):
    """Against the RETURNN that is installed for the Python named by RETURNN_PYTHON."""
    python = os.environ.get("RETURNN_PYTHON")
    if not python:
        pytest.skip("RETURNN_PYTHON names no Python with RETURNN")
    subprocess.run([python, GOLDEN / "dump_cases.py", version, tmp_path / "live"], check=True, capture_output=True)
    values = np.load(tmp_path / "live.npz")
    for name in NAMES:
        with returnn_imports(), ambient_state(behavior_version=VERSIONS[version], run_ctx=None):
            arrays, _ = dump_cases.evaluate(cases, name)
        for key in [k for k in values if re.match(rf"{re.escape(name)}/", k)]:
            compare(key, arrays[key.removeprefix(f"{name}/")], values[key])
