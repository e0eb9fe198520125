import importlib.util
from pathlib import Path

import pytest

from returnn_hydra.compat.import_hook import returnn_imports
from returnn_hydra.frontend.ambient import ambient_state

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def dump_cases():
    """The module that evaluates the cases."""
    spec = importlib.util.spec_from_file_location("dump_cases", GOLDEN / "dump_cases.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def cases(dump_cases):
    """rf_cases.py, unchanged, on this project."""
    with returnn_imports():
        return dump_cases.load_cases()


@pytest.fixture
def ctx(cases):
    """Some dims and tensors: B=3, T=(5, 3, 4), S=(2, 3, 1), F=4."""
    with ambient_state(run_ctx=None):
        yield cases.Ctx()
