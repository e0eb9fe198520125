"""What a callback can hook into: the training run, or the outputs of the forward task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

if TYPE_CHECKING:
    from returnn_hydra.batch import Batch, Loss
    from returnn_hydra.engine.records import EpochRecord
    from returnn_hydra.engine.trainer import Trainer


class Callback:
    """Base class: override the hooks you need. Hooks may raise; the run then ends with that error."""

    def on_run_start(self, trainer: Trainer) -> None:
        """Everything is built and loaded; no step has been made by this process."""

    def on_epoch_start(self, trainer: Trainer) -> None:
        """The learning rate of the epoch is set."""

    def on_step_end(self, trainer: Trainer, batch: Batch, losses: Mapping[str, Loss]) -> None:
        """One batch has been worked on."""

    def on_epoch_trained(self, trainer: Trainer) -> None:
        """The last batch of the epoch is done; nothing is saved or evaluated yet."""

    def on_evaluation_start(self, trainer: Trainer, dataset: str) -> None:
        """Before the first batch of a data set that is evaluated after the epoch."""

    def on_evaluation_end(self, trainer: Trainer, dataset: str) -> None:
        """After its last batch."""

    def on_epoch_end(self, trainer: Trainer, record: EpochRecord) -> None:
        """The epoch is trained, saved, evaluated and recorded."""

    def on_run_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """The run ends, in whatever way."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know, as JSON types."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of an earlier process."""


class ForwardCallback:
    """Receives the outputs of every sequence of the forward task, in corpus order."""

    def init(self, model: nn.Module) -> None:
        """Before the first sequence; the model is in evaluation mode."""

    def process_seq(self, seq_tag: str, outputs: Mapping[str, np.ndarray]) -> None:
        """One sequence: every output without batch axis and padding."""

    def finish(self) -> None:
        """After the last sequence; not called when the task failed, so files become final here."""


def output_path(folder: Path, file: str | None, default: str) -> Path:
    """Where a forward callback writes: `file` as the user gave it, else `default` in the run's folder."""
    return Path(file) if file is not None else folder / default
