#!/usr/bin/env python3
"""Learning curves of runs as a picture, out of their scores.jsonl (needs the extra `plot`).

    python scripts/plot_scores.py curve.png outputs/an4_ctc outputs/an4_conformer_ctc --score dev/label_error

One line per run and score, over the epochs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator

FEW_EPOCHS = 30
"""A shorter curve has a point for each of them; that of one epoch would be invisible."""


def read_scores(folder: Path, score: str) -> tuple[list[int], list[float]]:
    """Epochs and values of a score `<data set>/<name>`.

    Raises:
        ValueError: no such run, or no such score in it.
    """
    file = folder / "scores.jsonl"
    if not file.is_file():
        raise ValueError(f"{folder}: no scores.jsonl there, so this is no run's folder")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    epochs, values = [], []
    there: set[str] = set()
    for record in records:
        found = {
            f"{data}/{name}": entry["mean"] for data, row in record["scores"].items() for name, entry in row.items()
        }
        there |= found.keys()
        if score in found:
            epochs.append(record["epoch"])
            values.append(found[score])
    if not values:
        raise ValueError(f"{folder}: no score {score!r}; there is: {', '.join(sorted(there))}")
    return epochs, values


def usual_score(folder: Path) -> str:
    """An error rate of dev if there is one, else dev's first score.

    Raises:
        ValueError: no such run, or it has no score of dev.
    """
    file = folder / "scores.jsonl"
    first = file.read_text().partition("\n")[0] if file.is_file() else ""
    if not first:
        raise ValueError(f"{folder}: no scores.jsonl there, so this is no run's folder, or no epoch is done")
    names = list(json.loads(first)["scores"].get("dev", {}))
    if not names:
        raise ValueError(f"{folder}: no scores of dev; say --score DATA/NAME")
    return f"dev/{next((name for name in names if 'error' in name), names[0])}"


def plot(target: Path, folders: Sequence[Path], scores: Sequence[str], log: bool) -> None:
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for folder in folders:
        for score in scores:
            label = folder.name if len(scores) == 1 else f"{folder.name}: {score}"
            epochs, values = read_scores(folder, score)
            axes.plot(epochs, values, label=label, marker="." if len(epochs) < FEW_EPOCHS else None)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(scores[0] if len(scores) == 1 else "score")
    if log:
        axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    figure.savefig(target, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="file to write (.png, .svg, .pdf)")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    parser.add_argument(
        "--score", action="append", help="default: the error of dev, else its first score; may be given several times"
    )
    parser.add_argument("--log", action="store_true", help="logarithmic axis")
    arguments = parser.parse_args()
    try:
        plot(arguments.picture, arguments.runs, arguments.score or [usual_score(arguments.runs[0])], arguments.log)
    except ValueError as error:
        print(f"ERROR 2: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"Picture: {arguments.picture}")


if __name__ == "__main__":
    main()
