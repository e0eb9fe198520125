"""Forward callback: label priors, the mean posterior of every label over all frames."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import nn

from returnn_hydra.data.dataset import DataError
from returnn_hydra.engine.callback import ForwardCallback, output_path
from returnn_hydra.engine.files import FileSystem, explain_write, write_text
from returnn_hydra.usage import UsageError

logger = logging.getLogger(__name__)
TOLERANCE = 0.02
"""Of a sum of posteriors: bfloat16 has two to three digits."""


class Priors(ForwardCallback):
    """Writes the log of the mean of an output over all frames of the data set, one number per label and line.

    Args:
        output: name of the posteriors, (T, labels) per sequence, or (labels,).
        log_space: the output holds log-posteriors.
        file: where to; default: <data set>.log_priors.txt in the run's forward folder.
    """

    def __init__(
        self, folder: Path, data_name: str, output: str = "output", log_space: bool = False, file: str | None = None
    ) -> None:
        self.path = output_path(folder, file, f"{data_name}.log_priors.txt")
        self.output = output
        self.log_space = log_space
        self._sum: np.ndarray | None = None
        self._count = 0

    def init(self, model: nn.Module) -> None:
        self._sum, self._count = None, 0

    def process_seq(self, seq_tag: str, outputs: Mapping[str, np.ndarray]) -> None:
        if self.output not in outputs:
            raise DataError(
                f"{seq_tag}: priors need the output '{self.output}', the forward step gives {sorted(outputs)}"
            )
        posteriors = np.atleast_2d(outputs[self.output].astype(np.float64))
        posteriors = np.exp(posteriors) if self.log_space else posteriors
        _check_sums(posteriors.sum(axis=1), f"{seq_tag}: output '{self.output}'", self.log_space)
        self._sum = posteriors.sum(axis=0) + (0.0 if self._sum is None else self._sum)
        self._count += len(posteriors)

    def finish(self) -> None:
        if self._sum is None or not self._count:
            raise DataError("priors of a data set without frames")
        with np.errstate(divide="ignore"):
            log_priors = np.log(self._sum / self._count)
        disk = FileSystem()
        with explain_write(disk, self.path, 0):
            disk.make_folder(self.path.parent)
        write_text(disk, self.path, "".join(f"{value:.18e}\n" for value in log_priors))
        logger.info("Log-priors of %d labels from %d frames: %s", len(log_priors), self._count, self.path)


def _check_sums(sums: np.ndarray, what: str, log_space: bool) -> None:
    """Raises UsageError: the values of a frame are no distribution, as when probabilities are taken for logarithms."""
    wrong = np.flatnonzero(~(np.abs(sums - 1) <= TOLERANCE))
    if len(wrong):
        raise UsageError(
            f"{what}: the posteriors of frame {wrong[0]} sum to {sums[wrong[0]]:.4g}, expected 1; with log_space="
            f"{str(log_space).lower()} the output must hold {'their logarithms' if log_space else 'probabilities'} "
            "(forward_callback.log_space, forward_step.log)"
        )
