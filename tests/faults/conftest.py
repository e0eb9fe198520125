"""Makes the fault tools importable (`from faulttools.simulated_disk import ...`), and prints a table at the end."""

import sys
import uuid
from pathlib import Path

import pytest

TOOLS = str(Path(__file__).parent / "tools")
if TOOLS not in sys.path:
    sys.path.insert(0, TOOLS)

from faulttools.tally import ROW, Tally  # noqa: E402
from faulttools.training_runs import MODULES  # noqa: E402
from faulttools.zygote import Zygote, build_fault_layer  # noqa: E402


@pytest.fixture(autouse=True)
def one_run_id(monkeypatch):
    """Every run made in these tests has the same identity, so that its files can be compared byte for byte."""
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=7))


@pytest.fixture(scope="session")
def zygote(tmp_path_factory):
    """Runs of the command line with faults of the disk."""
    folder = tmp_path_factory.mktemp("zygote")
    layer = build_fault_layer(folder)
    if layer is None:
        pytest.skip("the fault layer needs Linux and a C compiler (gcc)")
    with Zygote(layer, MODULES, folder) as zygote:
        assert zygote.has_faults
        yield zygote


@pytest.fixture
def tally(record_property):
    """`tally("killed")`: a count of cases that becomes a row of the table."""
    return lambda fault: Tally(fault, record_property)


def pytest_terminal_summary(terminalreporter):
    """The table of what was tried."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    rows = [
        value for report in reports for key, value in report.user_properties if key == ROW and report.when == "call"
    ]
    if rows:
        terminalreporter.section("faults")
        terminalreporter.write_line(f"{'fault':62} {'tried':>9} {'survived':>9} {'identical':>9}")
        for fault, *counts in rows:
            terminalreporter.write_line(f"{fault:62} " + " ".join(f"{count:9,}" for count in counts))
