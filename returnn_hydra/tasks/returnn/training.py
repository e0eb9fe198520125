"""task=train on a RETURNN config: the parts of a Trainer, and its run."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from returnn_hydra.callbacks.log_lines import LogLines
from returnn_hydra.callbacks.tensorboard import TensorBoard
from returnn_hydra.compat.checkpoint_cleanup import CleanupRule
from returnn_hydra.compat.training_options import learning_rate_control_node, training_options
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.engine.callback import Callback
from returnn_hydra.engine.checkpoint import CheckpointStore
from returnn_hydra.engine.lock import RunLock
from returnn_hydra.engine.ranks import DataParallelStep
from returnn_hydra.engine.records import EpochRecord
from returnn_hydra.engine.retention import Retention, delete_epochs
from returnn_hydra.engine.run_store import RunStore, read_records
from returnn_hydra.engine.trainer import Position, Trainer
from returnn_hydra.engine.updater import Updater, UpdateRules
from returnn_hydra.optim.gradients import GradientRules
from returnn_hydra.optim.learning_rate_control import LearningRateControl
from returnn_hydra.tasks.returnn.datasets import dataset_value, evaluated_names, loader
from returnn_hydra.tasks.returnn.hooks import ConfigHooks, Progress
from returnn_hydra.tasks.returnn.learning_rate_records import LearningRateFile, records_of_file
from returnn_hydra.tasks.returnn.recipe import Recipe
from returnn_hydra.tasks.returnn.session import Session
from returnn_hydra.tasks.returnn.start import Start, load_optimizer, load_parameters, training_start

DEFAULT_NUM_EPOCHS = 5
logger = logging.getLogger(__name__)


def train(session: Session, recipe: Recipe) -> float | None:
    """Train up to `num_epochs`; returns the best value of the score that decides the learning rate."""
    if (session.values.get("torch_distributed") or {}).get("reduce_type") == "param":
        raise ConfigError("torch_distributed.reduce_type=param: parameters are not averaged; use reduce_type=grad")
    start = training_start(session)
    with contextlib.ExitStack() as stack:
        folder = _open_folder(session, stack)
        store = stack.enter_context(_store(session, recipe, folder, start))
        trainer = _trainer(session, recipe, store, start)
        records = trainer.run()
    decided = [trainer.selection_value(record, None) for record in records]
    return min(decided, default=None)


def _open_folder(session: Session, stack: contextlib.ExitStack) -> Path:
    """The run's folder, locked; without `model` a temporary one: nothing is kept, as in RETURNN."""
    if session.prefix is None:
        logger.warning("model is not set: no checkpoints are kept")
        return Path(stack.enter_context(tempfile.TemporaryDirectory()))
    session.folder.mkdir(parents=True, exist_ok=True)
    if session.ranks.is_first:
        stack.enter_context(RunLock(session.folder))
    return session.folder


def _store(session: Session, recipe: Recipe, folder: Path, start: Start) -> RunStore:
    values = session.values
    rule = CleanupRule.from_config(values.get("cleanup_old_models"))
    file = values.get("learning_rate_file")
    prefix = session.prefix or folder / "model"
    with_exp = bool(values.get("calculate_exp_loss"))
    return RunStore(
        folder,
        checkpoint_folder=prefix.parent,
        prefix=prefix.name,
        resume=start.resume,
        retention=Cleanup(rule, folder) if rule is not None else Retention(),
        writers=[LearningRateFile(Path(file), recipe, with_exp)] if file else [],
        ranks=session.ranks,
    )


class Cleanup:
    """`cleanup_old_models` after every epoch."""

    def __init__(self, rule: CleanupRule, folder: Path) -> None:
        self.rule = rule
        self.folder = folder

    def apply(self, store: CheckpointStore, scores: Any) -> list[int]:
        """Delete what no score asks for; returns the deleted epochs."""
        by_epoch = {record.epoch: record.means() for record in read_records(self.folder)}
        epochs = store.epochs()
        kept = self.rule.kept(epochs, by_epoch)
        return delete_epochs(store, [epoch for epoch in epochs if epoch not in kept])


def _trainer(session: Session, recipe: Recipe, store: RunStore, start: Start) -> Trainer:
    values = session.values
    names = evaluated_names(values)
    train_data = loader(session, "train", dataset_value(session, "train"), recipe.specs, equal_batches=True)
    eval_data = {name: loader(session, name, dataset_value(session, name), recipe.specs) for name in names}
    last = max(values.get("num_epochs", DEFAULT_NUM_EPOCHS), values.get("load_epoch") or 0)
    recipe.check_constant(start.epoch, last)
    model = recipe.model(start.model_epoch, start.step)
    load_parameters(session, model, start, training=True)
    updater = _updater(session, recipe, model, start)
    records = [] if start.resume else _records_before(session, recipe, store, start, ["train", *names])
    step = recipe.train_step()
    callbacks: dict[str, Callback] = {"progress": Progress(recipe, step)}
    if session.ranks.is_first:
        callbacks["log"] = LogLines()
    if session.ranks.is_first and values.get("use_tensorboard"):
        callbacks["tensorboard"] = TensorBoard(store.folder)
    if values.get("epoch_start") or values.get("epoch_end"):
        callbacks["hooks"] = ConfigHooks(values.get("epoch_start"), values.get("epoch_end"))
    return Trainer(
        model=model,
        train_step=DataParallelStep(model, step, session.device) if session.ranks.size > 1 else step,
        updater=updater,
        control=_control(session, recipe),
        train_data=train_data,
        eval_data=eval_data,
        store=store,
        device=session.device,
        num_epochs=last,
        seed=session.seed,
        ranks=session.ranks,
        callbacks=callbacks,
        position=Position(start.epoch),
        records=records,
    )


def _updater(session: Session, recipe: Recipe, model: nn.Module, start: Start) -> Updater:
    options = training_options(session.values)
    rules = UpdateRules(
        normalization="sum",
        grad_accum_steps=options.get("grad_accum_steps", 1),
        apply_incomplete=False,
        step_unit="batch",
        gradients=GradientRules(
            max_norm=options.get("max_grad_norm") or None,
            max_value=options.get("max_grad_value") or None,
            noise=options.get("gradient_noise") or 0.0,
            max_norm_per_tensor=options.get("max_grad_norm_per_tensor") or None,
        ),
        amp=options.get("amp", "none"),
        on_nonfinite=options.get("on_nonfinite", "stop"),
    )
    optimizer = recipe.optimizer(model, options["learning_rate"])
    if start.optimizer is not None:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        load_optimizer(optimizer, start.optimizer, lambda parameter: names[id(parameter)])
    updater = Updater(model, optimizer, rules, session.device, session.ranks)
    updater.num_updates = updater.num_batches = start.step
    return updater


def _control(session: Session, recipe: Recipe) -> LearningRateControl:
    node = {**learning_rate_control_node(session.values), "score": recipe.choose_score}
    learning_rate = float(session.values.get("learning_rate", 1.0))
    return session.builder.build(node, "learning_rate_control", learning_rate=learning_rate)


def _records_before(
    session: Session, recipe: Recipe, store: RunStore, start: Start, datasets: list[str]
) -> list[EpochRecord]:
    """The epochs before the first one, as our file or RETURNN's knows them."""
    if start.epoch == 1:
        return []
    ours = read_records(store.folder)
    file = session.values.get("learning_rate_file")
    known = ours or (records_of_file(Path(file), recipe, datasets) if file else [])
    return [record for record in known if record.epoch < start.epoch]
