"""The same seed gives RETURNN's random numbers: masks, noise, first parameters."""

import importlib.util
import json
from pathlib import Path

import pytest

from returnn_hydra.compat.import_hook import returnn_imports
from returnn_hydra.frontend.ambient import ambient_state

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def found():
    spec = importlib.util.spec_from_file_location("dump_draws", GOLDEN / "dump_draws.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with returnn_imports(), ambient_state(run_ctx=None):
        return module.draws()


@pytest.mark.parametrize("name", json.loads((GOLDEN / "draws.json").read_text()))
def test_same_numbers(found, name):
    expected = json.loads((GOLDEN / "draws.json").read_text())[name]
    assert found[name] == pytest.approx(expected, rel=1e-4, abs=2e-5)
