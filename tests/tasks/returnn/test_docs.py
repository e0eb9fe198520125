"""The documentation has the table of the keys as they are, and every task."""

from pathlib import Path

from returnn_hydra.config.returnn_keys import table
from returnn_hydra.tasks.returnn.task_table import COMMON, FUNCTIONS, NETWORK

DOCS = Path(__file__).parents[3] / "docs" / "returnn.md"


def test_table_of_keys():
    assert DOCS.read_text().endswith(table()), "write returnn_keys.table() to the end of docs/returnn.md"


def test_every_task_is_told():
    text = DOCS.read_text()
    assert all(f"`{task}`" in text for task in {*COMMON, *FUNCTIONS, *NETWORK})
