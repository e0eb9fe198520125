"""What a run remembers of its epochs: one line of scores.jsonl each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from returnn_hydra.engine.scores import Score


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch."""

    epoch: int
    learning_rate: float
    scores: dict[str, dict[str, Score]]
    """Data set name ("train", "dev", ...) to loss name to score."""
    step: int
    """Optimizer updates since the start of the run."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by part: train, and each evaluated data set."""
    statistics: dict[str, Any] = field(default_factory=dict)
    """Of training: batches, sequences, frames, padding fraction, frames_per_second, ..."""

    def means(self) -> dict[str, float]:
        """`{"dev/ce": 0.36, ...}`: what learning-rate control, retention and early stopping look at."""
        return {
            f"{dataset}/{name}": score.mean for dataset, scores in self.scores.items() for name, score in scores.items()
        }

    def to_json(self) -> dict[str, Any]:
        scores = {
            dataset: {
                name: {"sum": score.sum, "count": score.count, "mean": score.mean if score.count else None}
                for name, score in entries.items()
            }
            for dataset, entries in self.scores.items()
        }
        return {**vars(self), "scores": scores}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EpochRecord:
        scores = {
            dataset: {name: Score(float(score["sum"]), float(score["count"])) for name, score in entries.items()}
            for dataset, entries in values["scores"].items()
        }
        return cls(**{**values, "scores": scores})
