"""Makes the fault tools importable: `from faulttools.simulated_disk import SimulatedDisk`."""

import sys
import uuid
from pathlib import Path

import pytest

TOOLS = str(Path(__file__).parent / "tools")
if TOOLS not in sys.path:
    sys.path.insert(0, TOOLS)


@pytest.fixture(autouse=True)
def one_run_id(monkeypatch):
    """Every run made in these tests has the same identity, so that its files can be compared byte for byte."""
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=7))
