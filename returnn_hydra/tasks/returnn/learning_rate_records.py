"""The run's records as RETURNN's learning-rate file, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from returnn_hydra.compat.learning_rate_file import META, EpochData, format_learning_rates, read_learning_rate_file
from returnn_hydra.engine.files import FileSystem, write_text
from returnn_hydra.engine.records import EpochRecord
from returnn_hydra.engine.scores import Score
from returnn_hydra.tasks.returnn.recipe import Recipe

GRADIENT_NORM = "grad_norm:p"
"""Name of the score that `log_grad_norm` asks for, without the p."""


class LearningRateFile:
    """Writes the file after every epoch; a writer of RunStore.

    Args:
        with_exp: also exp(score) of every score (`calculate_exp_loss`).
    """

    def __init__(self, path: Path, recipe: Recipe, with_exp: bool = False) -> None:
        self.path = path
        self.recipe = recipe
        self.with_exp = with_exp

    def __call__(self, folder: Path, records: Sequence[EpochRecord]) -> None:
        disk = FileSystem()
        if self.path.parent != Path():
            disk.make_folder(self.path.parent)
        write_text(disk, self.path, format_learning_rates(self.entries(records)))

    def entries(self, records: Sequence[EpochRecord]) -> dict[int, EpochData]:
        """Epoch to what is recorded of it, under RETURNN's keys."""
        entries = {}
        first_step = 0
        for record in records:
            error: dict[str, object] = dict(self.recipe.score_keys(record.scores))
            if self.with_exp:
                losses = {
                    key: float(value)  # type: ignore[arg-type]
                    for key, value in error.items()
                    if not self.recipe.is_error(key) and GRADIENT_NORM not in key
                }
                error |= {f"{key}:exp": math.exp(min(value, 700.0)) for key, value in losses.items()}
            error[f"{META}effective_learning_rate"] = record.learning_rate
            error[f"{META}epoch_num_train_steps"] = record.step - first_step
            error[f"{META}epoch_train_time_secs"] = round(record.seconds.get("train", 0.0))
            error[f"{META}global_train_step"] = first_step
            error[f"{META}global_train_step_end"] = record.step
            entries[record.epoch] = EpochData(record.learning_rate, error)
            first_step = record.step
        return entries


def records_of_file(path: Path, recipe: Recipe, datasets: Sequence[str]) -> list[EpochRecord]:
    """The epochs of a file that RETURNN has written; empty if there is no file."""
    if not path.is_file():
        return []
    return [
        EpochRecord(epoch, data.learning_rate, _scores(data.scores, recipe, datasets), _last_step(data))
        for epoch, data in read_learning_rate_file(path).items()
        if data.scores
    ]


def _scores(values: Mapping[str, float], recipe: Recipe, datasets: Sequence[str]) -> dict[str, dict[str, Score]]:
    scores: dict[str, dict[str, Score]] = {}
    for key, value in values.items():
        found = recipe.split_key(key, datasets)
        if found is not None and not key.endswith(":exp"):
            scores.setdefault(found[0], {})[found[1]] = Score(float(value), 1.0)
    return scores


def _last_step(data: EpochData) -> int:
    meta = data.meta
    first, steps = meta.get("global_train_step", 0), meta.get("epoch_num_train_steps", 0)
    return int(meta.get("global_train_step_end", first + steps))
