"""The training run in the log: one line per epoch, per data set, per batch, by verbosity."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from returnn_hydra.batch import Batch, Loss
from returnn_hydra.data.loader import Loader
from returnn_hydra.data.stream_loader import StreamLoader
from returnn_hydra.engine.callback import Callback
from returnn_hydra.engine.log import BATCHES, RESULTS, SUMMARY, hms
from returnn_hydra.engine.records import EpochRecord
from returnn_hydra.engine.scores import Score, format_scores
from returnn_hydra.engine.trainer import Trainer

logger = logging.getLogger(__name__)


class LogLines(Callback):
    """Writes what happens; reading losses at every batch (which waits for the device) only at verbosity 5."""

    def on_run_start(self, trainer: Trainer) -> None:
        num_parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
        logger.log(
            SUMMARY, "Model: %s, %d parameters, on %s", type(trainer.model).__name__, num_parameters, trainer.device
        )
        for name, data in {"train": trainer.train_data, **trainer.eval_data}.items():
            logger.log(SUMMARY, "Data %s: %s", name, _size(data))
        optimizer = trainer.updater.optimizer
        logger.log(RESULTS, "Optimizer: %s, %d parameter groups", type(optimizer).__name__, len(optimizer.param_groups))
        self._process_started = time.monotonic()

    def on_epoch_start(self, trainer: Trainer) -> None:
        self._started, self._first = time.monotonic(), trainer.position.batch
        rate = trainer.control.learning_rate(trainer.position.epoch, trainer.history())
        logger.info(
            "Start epoch %d, step %d, learning rate %g",
            trainer.position.epoch,
            trainer.updater.num_updates,
            rate,
        )

    def on_step_end(self, trainer: Trainer, batch: Batch, losses: Mapping[str, Loss]) -> None:
        if not logger.isEnabledFor(BATCHES):
            return
        scores = {name: Score(float(loss.sum.detach()), float(loss.count)) for name, loss in losses.items()}
        parts = [f"{name} {format_scores({name: score})}" for name, score in scores.items()]
        position = trainer.position
        elapsed = time.monotonic() - self._started
        total = trainer.train_data.num_batches(position.epoch)
        progress = "unknown epoch length"
        if total:
            here = position.batch - self._first
            remaining = elapsed / max(here, 1) * (total - position.batch)
            progress = f"exp. remaining {hms(remaining)}, complete {100 * position.batch / total:.2f}%"
        logger.log(
            BATCHES,
            "ep %d train, step %d, %s, num_seqs %d, elapsed %s, %s",
            position.epoch,
            position.batch - 1,
            ", ".join(parts),
            batch.num_seqs,
            hms(elapsed),
            progress,
        )

    def on_epoch_end(self, trainer: Trainer, record: EpochRecord) -> None:
        statistics = record.statistics
        logger.info(
            "Epoch %d: trained %s batches, %s elapsed, %s frames/s, %.1f%% padding",
            record.epoch,
            statistics.get("num_batches", "?"),
            hms(record.seconds.get("train", 0)),
            f"{statistics['frames_per_second']:.0f}" if "frames_per_second" in statistics else "?",
            100 * statistics.get("padding_fraction", 0.0),
        )
        self._warn(trainer, record)
        evaluations = [f"{name}: {format_scores(scores)}" for name, scores in record.scores.items() if name != "train"]
        logger.log(
            RESULTS,
            "Epoch %d: train: %s, evaluation: %s",
            record.epoch,
            format_scores(record.scores["train"]),
            " ".join(evaluations) or "(no evaluations)",
        )

    @staticmethod
    def _warn(trainer: Trainer, record: EpochRecord) -> None:
        """What the batches of the epoch left out or could not keep to, one line each."""
        warnings = {"train": record.statistics.get("warnings", [])}
        for name, data in trainer.eval_data.items():
            warnings[name] = data.statistics(record.epoch)["warnings"]
        for name, lines in warnings.items():
            for line in lines:
                logger.warning("Epoch %d: %s: %s", record.epoch, name, line)

    def on_run_end(self, trainer: Trainer, error: BaseException | None) -> None:
        if error is None:
            logger.info(
                "Finished training at epoch %d, step %d, elapsed %s",
                trainer.position.epoch - 1,
                trainer.updater.num_updates,
                hms(time.monotonic() - self._process_started),
            )


def _size(data: Loader | StreamLoader) -> str:
    """`243 sequences, 3856 frames`."""
    if isinstance(data, StreamLoader):
        return "a stream of unknown length"
    lengths = data.dataset.order_lengths()
    frames = "an unknown number of" if lengths is None else str(int(lengths.sum()))
    return f"{len(data.dataset)} sequences, {frames} frames"
