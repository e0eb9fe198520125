"""task=train: build everything, train what is left, keep checkpoints and scores."""

from __future__ import annotations

import logging

from returnn_hydra.config.errors import ConfigError
from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.loader import Loader
from returnn_hydra.data.stream_loader import StreamLoader
from returnn_hydra.engine.trainer import Trainer
from returnn_hydra.tasks.context import Context
from returnn_hydra.tasks.data import check_data
from returnn_hydra.tasks.parts import (
    build_callbacks,
    build_control,
    build_model,
    build_train_step,
    build_updater,
    open_store,
)

logger = logging.getLogger(__name__)


def check_not_empty(loader: Loader | StreamLoader) -> None:
    """A training without batches would end well and have learnt nothing.

    Raises:
        DataError: the first epoch, the longest one of a pass over the corpus, has no batch.
    """
    if loader.num_batches(1) == 0:
        why = "; ".join(loader.statistics(1)["warnings"]) or "the corpus is empty"
        raise DataError(f"datasets.train: no batch in epoch 1: {why}")


def run(context: Context) -> float | None:
    """Train up to `num_epochs`; returns the best value of the selection score."""
    values = context.values
    confs = context.dataset_confs()
    with context.lock(), context.status() as status, open_store(context) as store:
        if "train" not in confs:
            raise ConfigError("datasets.train: task=train needs it")
        loaders = {name: context.loader(name, conf, equal_batches=name == "train") for name, conf in confs.items()}
        if values["check_data"]:
            for name, loader in loaders.items():
                logger.info("%s: %d sequences checked, all are what they should be", name, check_data(loader))
        check_not_empty(loaders["train"])
        model = build_model(context)
        trainer = Trainer(
            model=model,
            train_step=build_train_step(context, model),
            updater=build_updater(context, model),
            control=build_control(context),
            train_data=loaders.pop("train"),
            eval_data=loaders,
            store=store,
            device=context.device,
            num_epochs=values["num_epochs"],
            seed=values["seed"],
            ranks=context.ranks,
            on_oom=values["on_oom"],
            log_every=values["log_every"],
            check_batch=values["debug"]["check_batch"],
            callbacks={"status": status, **build_callbacks(context)} if status else {},
        )
        records = trainer.run()
    if not records:
        return None
    return min(trainer.selection_value(record, values["score"]) for record in records)
