"""`use_last_best_model` of a network dict: an epoch may begin with the parameters of an earlier one that was better."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from returnn_hydra.config.errors import ConfigError, nearest
from returnn_hydra.engine.callback import Callback
from returnn_hydra.engine.trainer import Trainer

logger = logging.getLogger(__name__)
_OPTIONS = ("modulo", "first_epoch", "only_last_epochs", "filter_score", "only_last_n", "min_score_dist")


def last_best_epoch(epoch: int, scores: Mapping[int, float | None], options: Mapping[str, Any]) -> int | None:
    """The epoch before `epoch` whose parameters are to be taken; None: the newest ones stay.

    Args:
        scores: of every finished epoch, lower is better.
        options: modulo: only epochs that this divides look back (or if the newest score is above filter_score);
            first_epoch, only_last_epochs, only_last_n: which earlier epochs count; filter_score: the largest score
            that counts; min_score_dist: how much better it must be than the newest.
    """
    limit = options.get("filter_score", math.inf)
    if epoch % options.get("modulo", 1) and (scores.get(epoch - 1) or 0) <= limit:
        return None
    first = options.get("first_epoch", 1)
    if options.get("only_last_epochs"):
        first = max(first, epoch - options["only_last_epochs"])
    known = [
        (score, number) for number, score in sorted(scores.items()) if score is not None and first <= number < epoch
    ]
    if not known:
        return None
    newest = known[-1][0]
    known = [(score, number) for score, number in known if score <= limit]
    if options.get("only_last_n", -1) >= 1:
        known = known[-options["only_last_n"] :]
    better = [(score, number) for score, number in known if score + options.get("min_score_dist", 0.0) < newest]
    return min(better)[1] if better else None


class UseLastBestModel(Callback):
    """Loads the parameters at the beginning of an epoch; the optimizer begins anew then, as in RETURNN.

    Args:
        options: see `last_best_epoch`; `first_epoch` is the number of pretraining epochs by default.
        num_pretrain_epochs: these never look back.

    Raises:
        ConfigError: an option that does not exist.
    """

    def __init__(self, options: Mapping[str, Any], num_pretrain_epochs: int) -> None:
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise ConfigError(f"use_last_best_model: unknown option '{unknown[0]}'{nearest(unknown[0], _OPTIONS)}")
        self.options = {"first_epoch": max(num_pretrain_epochs, 1), **options}
        self.num_pretrain_epochs = num_pretrain_epochs

    def on_epoch_start(self, trainer: Trainer) -> None:
        epoch = trainer.position.epoch
        if trainer.position.batch or epoch <= self.num_pretrain_epochs:
            return
        values = trainer.control.scores_of(trainer.history())
        scores = {record.epoch: value for record, value in zip(trainer.records, values, strict=True)}
        best = last_best_epoch(epoch, scores, self.options)
        if best is None or best == epoch - 1:
            return
        trainer.store.wait()
        checkpoint = trainer.store.checkpoints.load(best, trainer.device)
        trainer.model.load_state_dict(checkpoint.model)
        trainer.updater.optimizer.state.clear()
        logger.warning(
            "Epoch %d scored %.4f, epoch %d scored %.4f: epoch %d begins with the parameters of epoch %d",
            epoch - 1,
            scores.get(epoch - 1) or math.nan,
            best,
            scores[best],
            epoch,
            best,
        )
