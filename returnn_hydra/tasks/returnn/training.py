"""task=train on a RETURNN config: the parts of a Trainer, and its run."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from returnn_hydra.callbacks.log_lines import LogLines
from returnn_hydra.callbacks.tensorboard import TensorBoard
from returnn_hydra.compat.checkpoint_cleanup import CleanupRule
from returnn_hydra.compat.training_options import learning_rate_control_node, training_options
from returnn_hydra.engine.callback import Callback
from returnn_hydra.engine.checkpoint import CheckpointStore
from returnn_hydra.engine.lock import RunLock
from returnn_hydra.engine.parallel import ReplicatedStep
from returnn_hydra.engine.ranks import Ranks
from returnn_hydra.engine.records import EpochRecord
from returnn_hydra.engine.retention import Retention, delete_epochs
from returnn_hydra.engine.run_store import RunStore, read_records
from returnn_hydra.engine.status import StatusFile
from returnn_hydra.engine.trainer import Position, Trainer
from returnn_hydra.engine.updater import Updater, UpdateRules
from returnn_hydra.network.schedule import Stage
from returnn_hydra.optim.gradients import GradientRules
from returnn_hydra.optim.learning_rate_control import LearningRateControl
from returnn_hydra.tasks.returnn.datasets import dataset_value, evaluated_names, loader
from returnn_hydra.tasks.returnn.hooks import ConfigHooks, EpochSeeds, GradientNorm, Progress
from returnn_hydra.tasks.returnn.last_best_model import UseLastBestModel
from returnn_hydra.tasks.returnn.learning_rate_records import LearningRateFile, records_of_file
from returnn_hydra.tasks.returnn.parameter_average import ParameterAverage, average_interval
from returnn_hydra.tasks.returnn.recipe import Recipe
from returnn_hydra.tasks.returnn.session import Session
from returnn_hydra.tasks.returnn.stages import remaining
from returnn_hydra.tasks.returnn.start import Start, load_optimizer, load_parameters, training_start

DEFAULT_NUM_EPOCHS = 5
logger = logging.getLogger(__name__)


def train(session: Session, recipe: Recipe) -> float | None:
    """Train up to `num_epochs`; returns the best value of the score that decides the learning rate."""
    start = training_start(session)
    last = max(session.values.get("num_epochs", DEFAULT_NUM_EPOCHS), session.values.get("load_epoch") or 0)
    trainer: Trainer | None = None
    with contextlib.ExitStack() as stack:
        folder, status = _open_folder(session, stack)
        for stage in remaining(session, recipe.stages(last), start):
            resume = start.resume and trainer is None
            with session.changed(stage.config), _store(session, recipe, folder, resume) as store:
                trainer = _trainer(session, recipe, store, start, stage, trainer)
                trainer.callbacks = {**status, **trainer.callbacks}
                trainer.run()
            if trainer.stopping:
                break
    assert trainer is not None
    decided = [trainer.selection_value(record, None) for record in trainer.records]
    return min(decided, default=None)


def _open_folder(session: Session, stack: contextlib.ExitStack) -> tuple[Path, dict[str, Callback]]:
    """The run's folder, locked, and what keeps its status.json.

    Without `model` a temporary one: nothing is kept, as in RETURNN.
    """
    if session.prefix is None:
        logger.warning("model is not set: no checkpoints are kept")
        return Path(stack.enter_context(tempfile.TemporaryDirectory())), {}
    session.folder.mkdir(parents=True, exist_ok=True)
    if not session.ranks.is_first:
        return session.folder, {}
    stack.enter_context(RunLock(session.folder))
    return session.folder, {"status": stack.enter_context(StatusFile(session.folder))}


def _store(session: Session, recipe: Recipe, folder: Path, resume: bool) -> RunStore:
    values = session.values
    rule = CleanupRule.from_config(values.get("cleanup_old_models"))
    file = values.get("learning_rate_file")
    prefix = session.prefix or folder / "model"
    with_exp = bool(values.get("calculate_exp_loss"))
    return RunStore(
        folder,
        checkpoint_folder=prefix.parent,
        prefix=prefix.name,
        fingerprint={"world_size": session.ranks.size} if session.ranks.size > 1 else {},
        resume=resume,
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


def _trainer(
    session: Session, recipe: Recipe, store: RunStore, start: Start, stage: Stage, before: Trainer | None
) -> Trainer:
    """The parts of one stage.

    Args:
        before: of the stage before; its model, if this stage has another one, goes over by name. The optimizer of
            another model begins anew, as in RETURNN.
    """
    values = session.values
    names = evaluated_names(values)
    train_data = loader(session, "train", dataset_value(session, "train"), recipe.specs, equal_batches=True)
    eval_data = {name: loader(session, name, dataset_value(session, name), recipe.specs) for name in names}
    if before is None:
        model, updater = _first_model(session, recipe, start, stage)
        records = [] if start.resume else _records_before(session, recipe, store, start, ["train", *names])
        position = Position(max(start.epoch, stage.first))
    else:
        model, updater = _next_model(session, recipe, stage, before)
        records, position = before.records, Position(stage.first)
    if values.get("torch_compile"):
        model.compile()
    step = recipe.train_step()
    seeds = EpochSeeds(session.seed, values.get("torch_dataloader_opts") or {})
    callbacks: dict[str, Callback] = {"progress": Progress(recipe, step), "seeds": seeds}
    if session.ranks.is_first:
        callbacks["log"] = LogLines()
    if (norm_type := logged_norm_type(values)) is not None:
        callbacks["gradient_norm"] = GradientNorm(norm_type)
    if session.ranks.is_first and values.get("use_tensorboard"):
        callbacks["tensorboard"] = TensorBoard(store.folder)
    if session.is_network and (options := values.get("use_last_best_model")):
        callbacks["last_best"] = UseLastBestModel({} if options is True else options, recipe.num_pretrain_epochs)
    interval = average_interval(values.get("torch_distributed") or {})
    if session.ranks.size > 1 and interval is not None:
        callbacks["average"] = ParameterAverage(session.ranks, interval)
    if values.get("epoch_start") or values.get("epoch_end"):
        callbacks["hooks"] = ConfigHooks(values.get("epoch_start"), values.get("epoch_end"))
    return Trainer(
        model=model,
        train_step=ReplicatedStep(model, step, session.device) if _shares_gradients(session) else step,
        updater=updater,
        control=_control(session, recipe),
        train_data=train_data,
        eval_data=eval_data,
        store=store,
        device=session.device,
        num_epochs=stage.last,
        seed=session.seed,
        seeds_torch=False,
        ranks=session.ranks,
        callbacks=callbacks,
        position=position,
        records=records,
    )


def _first_model(session: Session, recipe: Recipe, start: Start, stage: Stage) -> tuple[nn.Module, Updater]:
    """The model of the stage that the run begins or goes on with."""
    loaded = min(start.model_epoch, stage.last)
    if start.resume:
        loaded = max(loaded, stage.first)
    elif start.optimizer is not None and stage.new_network and start.epoch == stage.first > 1:
        loaded = start.epoch - 1  # the file is from the stage before
    model = recipe.model(loaded, start.step)
    load_parameters(session, model, start, training=True)
    optimizer_state = start.optimizer
    if 1 <= loaded < stage.first and stage.new_network:
        before, model = model, recipe.model(stage.first, start.step)
        recipe.take_parameters(model, before, stage)
        optimizer_state = None
    updater = _updater(session, recipe, model)
    if optimizer_state is not None:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        load_optimizer(updater.optimizer, optimizer_state, lambda parameter: names[id(parameter)])
    updater.num_updates = updater.num_batches = start.step
    return model, updater


def _next_model(session: Session, recipe: Recipe, stage: Stage, before: Trainer) -> tuple[nn.Module, Updater]:
    """The model of a later stage: the same one, or another one with the parameters learnt so far."""
    if stage.new_network:
        model = recipe.model(stage.first, before.updater.step)
        recipe.take_parameters(model, before.model, stage)
        updater = _updater(session, recipe, model)
    else:
        model = before.model
        updater = _updater(session, recipe, model, before.updater.optimizer)
    updater.load_state_dict(before.updater.state_dict())
    return model, updater


def _updater(
    session: Session, recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> Updater:
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
            measured_norm_type=logged_norm_type(session.values),
        ),
        amp=options.get("amp", "none"),
        on_nonfinite=options.get("on_nonfinite", "stop"),
    )
    optimizer = optimizer or recipe.optimizer(model, options["learning_rate"])
    return Updater(model, optimizer, rules, session.device, session.ranks if _shares_gradients(session) else Ranks())


def logged_norm_type(values: Mapping[str, Any]) -> float | None:
    """p of the gradients' norm that is a score of the training (`log_grad_norm`); None: no such score."""
    wanted = values.get("log_grad_norm")
    return 2 if wanted is True else wanted or None


def _shares_gradients(session: Session) -> bool:
    """Several ranks make one update together; else each makes its own."""
    return session.ranks.size > 1 and average_interval(session.values.get("torch_distributed") or {}) is None


def _control(session: Session, recipe: Recipe) -> LearningRateControl:
    node = {**learning_rate_control_node(session.values), "score": recipe.choose_score}
    learning_rate = float(session.values.get("learning_rate", 1.0))
    rule = session.builder.build(node, "learning_rate_control", learning_rate=learning_rate)
    return recipe.learning_rate_control(rule)


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
