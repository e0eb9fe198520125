"""The axes of results come in RETURNN's order, with its feature dim, dtype and values; recorded from RETURNN 1.2026."""

import json
from pathlib import Path

import pytest

from returnn_hydra.compat.import_hook import returnn_imports
from tests.frontend.axis_calls import CALLS, LAYOUTS, results

RECORDED = json.loads(Path(__file__).with_name("axes_of_results.json").read_text())


@pytest.fixture(scope="module")
def found():
    with returnn_imports():
        return {layout: results(layout) for layout in LAYOUTS}


def parts(described):
    return [described] if isinstance(described[1], str) else described


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("call", CALLS)
def test_as_in_returnn(found, layout, call):
    for ours, theirs in zip(parts(found[layout][call]), parts(RECORDED[layout][call]), strict=True):
        assert ours[:-1] == theirs[:-1]
        assert ours[-1] == pytest.approx(theirs[-1], abs=3e-3)
