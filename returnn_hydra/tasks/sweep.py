"""The table at the end of a sweep: what every job was, what came out of it, and where it is.

The jobs may run in other processes (hydra/launcher=joblib), and Hydra forgets the results of all when one fails; so
each job leaves a row in a folder that lives as long as the sweep.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from returnn_hydra.config.errors import ConfigError

FOLDER = "RETURNN_HYDRA_SWEEP"
"""Environment variable: the folder of the rows, which the processes of the jobs inherit."""
HEAD = ("job", "score", "overrides", "folder")
DIED = "died"
"""The outcome of a job that could not say how it ended."""


@contextlib.contextmanager
def table_at_the_end() -> Iterator[None]:
    """Prints the table on stderr if jobs of a sweep ran inside, however it ends."""
    with tempfile.TemporaryDirectory(prefix="returnn_hydra_sweep_") as folder:
        os.environ[FOLDER] = folder
        try:
            yield
        finally:
            del os.environ[FOLDER]
            rows = [_read(file) for file in Path(folder).glob("*.json")]
            if rows:
                print("\n".join(table(rows)), file=sys.stderr)


class Row:
    """One job's line of the table; outside of a sweep it does nothing.

    Args:
        number: of the job, from 0; None: it is not one of a sweep.
        overrides: its words of the command line.
    """

    def __init__(self, number: int | None, overrides: Sequence[str]) -> None:
        folder = os.environ.get(FOLDER)
        self._file = None if number is None or folder is None else Path(folder) / f"{number}.json"
        self._facts: dict[str, Any] = {"job": number, "overrides": list(overrides), "folder": "", "outcome": DIED}

    def write(self, **facts: Any) -> None:
        """What is known now: `folder`, `outcome` (a score, None, or how it failed in a word)."""
        self._facts.update(facts)
        if self._file is not None:
            temporary = self._file.with_suffix(".tmp")
            temporary.write_text(json.dumps(self._facts))
            temporary.rename(self._file)

    def claim(self, folder: Path) -> None:
        """Take the folder for a training.

        Raises:
            ConfigError: another job of the sweep trains in it.
        """
        others = [] if self._file is None else [_read(file) for file in self._file.parent.glob("*.json")]
        for other in others:
            if other["job"] != self._facts["job"] and other["folder"] == str(folder):
                words = [word for word in self._facts["overrides"] if word not in other["overrides"]]
                raise ConfigError(
                    f"{folder}: job {other['job']} of the sweep trains there too; {' '.join(words)} is not in a run's "
                    "name: give each a name of its own, such as 'name=mine_${num_epochs}'"
                )
        self.write(folder=str(folder))


def _read(file: Path) -> dict[str, Any]:
    row = json.loads(file.read_text())
    assert isinstance(row, dict)
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines: the best score first, jobs without one behind; of the overrides those in which the jobs differ."""
    shared = set.intersection(*({*row["overrides"]} for row in rows)) if len(rows) > 1 else set()
    ordered = sorted(rows, key=lambda row: (*_rank(row["outcome"]), row["job"]))
    cells = [HEAD]
    for row in ordered:
        words = " ".join(word for word in row["overrides"] if word not in shared)
        cells.append((str(row["job"]), _shown(row["outcome"]), words, row["folder"]))
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEAD))]
    not_done = sum(isinstance(row["outcome"], str) for row in rows)
    title = f"Sweep of {len(rows)} job{'s' if len(rows) > 1 else ''}{f', {not_done} not done' if not_done else ''}"
    best_first = ", the best score first" if isinstance(ordered[0]["outcome"], float) else ""
    return [
        title + best_first,
        *("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells),
    ]


def _rank(outcome: Any) -> tuple[int, float]:
    """Scores, which are fractions; numbers of things (sequences that were forwarded) and nothing; failures."""
    if isinstance(outcome, str):
        return 2, 0.0
    return (0, outcome) if isinstance(outcome, float) else (1, 0.0)


def _shown(outcome: Any) -> str:
    return f"{outcome:.6g}" if isinstance(outcome, float) else "-" if outcome is None else str(outcome)
