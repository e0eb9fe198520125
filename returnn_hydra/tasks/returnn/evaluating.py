"""task=eval: the scores of a checkpoint on every data set but train."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

from returnn_hydra.compat.learning_rate_file import better_repr
from returnn_hydra.engine.evaluator import evaluate
from returnn_hydra.engine.files import FileSystem, write_text
from returnn_hydra.engine.log import RESULTS
from returnn_hydra.engine.scores import Score
from returnn_hydra.tasks.evaluate import table
from returnn_hydra.tasks.returnn.datasets import dataset_value, evaluated_names, loader
from returnn_hydra.tasks.returnn.forwarding import loaded_model
from returnn_hydra.tasks.returnn.hooks import call_hook
from returnn_hydra.tasks.returnn.precision import autocast
from returnn_hydra.tasks.returnn.recipe import Recipe
from returnn_hydra.tasks.returnn.session import Session

logger = logging.getLogger(__name__)


def evaluate_task(session: Session, recipe: Recipe) -> float | None:
    """Scores of the loaded model on dev, eval and `eval_datasets`, also into `eval_output_file`; returns the first."""
    names = evaluated_names(session.values)
    model, start = loaded_model(session, recipe)
    step = recipe.train_step()
    recipe.set_progress(step, model, start.epoch, start.step)
    scores: dict[str, dict[str, Score]] = {}
    as_error: dict[str, bool] = {}
    for name in names:
        batches = loader(session, name, dataset_value(session, name), recipe.specs).epoch(start.epoch)

        def watched(model: Any, batch: Any) -> Any:
            losses = step(model, batch)
            as_error.update({key: loss.as_error for key, loss in losses.items()})
            return losses

        call_hook(session.values.get("epoch_start"), model, start.epoch, start.step, name)
        part = evaluate(model, watched, batches, session.device, functools.partial(autocast, session))
        call_hook(session.values.get("epoch_end"), model, start.epoch, start.step, name)
        scores[name] = session.ranks.merge(part)
    for line in table(scores):
        logger.log(RESULTS, line)
    if (file := session.values.get("eval_output_file")) and session.ranks.is_first:
        write_text(FileSystem(), Path(file), better_repr(_plain(scores, as_error)) + "\n")
    return next((score.mean for entries in scores.values() for score in entries.values()), None)


def _plain(scores: dict[str, dict[str, Score]], as_error: dict[str, bool]) -> dict[str, Any]:
    return {
        dataset: {
            kind: {name: score.mean for name, score in entries.items() if as_error[name] == wanted}
            for kind, wanted in (("score", False), ("error", True))
        }
        for dataset, entries in scores.items()
    }
