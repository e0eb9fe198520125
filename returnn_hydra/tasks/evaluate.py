"""task=evaluate: the scores of a checkpoint on data sets, as a table and as JSON."""

from __future__ import annotations

import contextlib
import json
import logging

from returnn_hydra.engine.evaluator import evaluate
from returnn_hydra.engine.files import FileSystem, write_text
from returnn_hydra.engine.log import RESULTS
from returnn_hydra.engine.scores import Score
from returnn_hydra.tasks.context import Context
from returnn_hydra.tasks.parts import load_model

logger = logging.getLogger(__name__)


def run(context: Context) -> float | None:
    """Scores of `load_epoch` on `evaluate_data` (default: every data set but train); returns the first of them."""
    values = context.values
    names = values["evaluate_data"] or [name for name in context.dataset_confs() if name != "train"]
    names = [names] if isinstance(names, str) else list(names)
    confs = {name: context.dataset_conf(name, "evaluate_data") for name in names}
    model, epoch = load_model(context)
    train_step = context.step("train_step", model)
    scores: dict[str, dict[str, Score]] = {}
    for name, conf in confs.items():
        batches = context.loader(name, conf).epoch(epoch)
        part = evaluate(model, train_step, batches, context.device, contextlib.nullcontext)
        scores[name] = context.ranks.merge(part)
    for line in table(scores):
        logger.log(RESULTS, line)
    first = next(iter(next(iter(scores.values())).values()), None)
    score = first.mean if first else None
    if not context.ranks.is_first:
        return score
    file = context.folder.path / f"evaluation.{epoch:03d}.json"
    write_text(FileSystem(), file, json.dumps(_plain(epoch, scores), indent=1) + "\n")
    logger.info("Scores of epoch %d: %s", epoch, file)
    return score


def table(scores: dict[str, dict[str, Score]]) -> list[str]:
    """The scores as aligned lines: data set, loss, mean, sum, count."""
    rows = [("data", "score", "mean", "sum", "count")]
    for dataset, entries in scores.items():
        rows += [(dataset, name, f"{s.mean:.6f}", f"{s.sum:.6g}", f"{s.count:g}") for name, s in entries.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _plain(epoch: int, scores: dict[str, dict[str, Score]]) -> dict:
    return {
        "epoch": epoch,
        "scores": {
            dataset: {name: {"sum": s.sum, "count": s.count, "mean": s.mean} for name, s in entries.items()}
            for dataset, entries in scores.items()
        },
    }
