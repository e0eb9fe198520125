"""A config with `get_model`, `train_step` and the like: torch or frontend modules, both public forms of the steps."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from returnn_hydra import frontend
from returnn_hydra.batch import TensorSpec
from returnn_hydra.compat.optimizer import build_optimizer, optimizer_options
from returnn_hydra.compat.score_keys import returnn_choice, to_returnn_key
from returnn_hydra.compat.shim.engine_face import EngineFace
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.engine.scores import Score
from returnn_hydra.frontend.ambient import ambient_state
from returnn_hydra.frontend.module import Module
from returnn_hydra.frontend.run_ctx import RunCtx
from returnn_hydra.frontend.steps import RFForwardStep, RFTrainStep, as_torch_module, call_with_wanted, user_model
from returnn_hydra.network.schedule import Stage
from returnn_hydra.optim.learning_rate_control import LearningRateControl
from returnn_hydra.tasks.returnn.session import Session
from returnn_hydra.tasks.returnn.stages import one_stage
from returnn_hydra.tasks.returnn.streams import specs_of_templates, templates

FRONTEND_CLASSES = {
    f"rf.{name}": kind for name, kind in vars(frontend).items() if isinstance(kind, type) and issubclass(kind, Module)
}
"""Classes that an optimizer's options may name."""


class UserFunctions:
    """The recipe of such a config.

    `num_pretrain_epochs`: none.

    Raises:
        ConfigError: a function is missing, or extern_data is wrong.
    """

    num_pretrain_epochs = 0

    def __init__(self, session: Session) -> None:
        self.session = session
        self.templates = templates(session.values)
        if self.templates is None:
            raise ConfigError("extern_data is missing: {stream: {dim, sparse, shape, ...}}")
        self.specs: dict[str, TensorSpec] = specs_of_templates(self.templates)
        self.float_dtype: str | None = session.values.get("default_float_dtype")
        self.error_names: set[str] = set()

    def files(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def model(self, epoch: int, step: int) -> nn.Module:
        """What `get_model` makes, after RETURNN's seeding."""
        function = self.session.function("get_model")
        device = str(self.session.device)
        self.session.seed_for_model(epoch, step)
        context = RunCtx(stage="init", epoch=epoch, step=step, device=device, engine=self._engine(epoch))
        with ambient_state(run_ctx=context, device=device):
            made = call_with_wanted(function, {"epoch": epoch, "step": step, "device": device})
            return as_torch_module(made).to(self.session.device)

    def _engine(self, epoch: int) -> EngineFace:
        values, is_training = self.session.values, self.session.values.get("task", "train") == "train"

        def dataset(name: str) -> Any:
            value = values.get(name)
            return values.get(value) if isinstance(value, str) else value or None

        return EngineFace(
            self.session.config, dataset, is_training=is_training, epoch=epoch, device=str(self.session.device)
        )

    def stages(self, last: int) -> list[Stage]:
        """One: `get_model` is called once."""
        return [one_stage(1, last)]

    def take_parameters(self, model: nn.Module, before: nn.Module, stage: Stage) -> None:
        raise AssertionError("there is only one stage")

    def learning_rate_control(self, rule: LearningRateControl) -> LearningRateControl:
        return rule

    def train_step(self) -> RFTrainStep:
        step = RFTrainStep(
            self.session.function("train_step"), self.templates, float_dtype=self.float_dtype, engine=self._engine(1)
        )
        self.error_names = step.error_names
        return step

    def set_progress(self, train_step: RFTrainStep, model: nn.Module, epoch: int, step: int) -> None:
        train_step.global_step = step

    def optimizer(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        try:
            return build_optimizer(
                optimizer_options(self.session.values),
                model,
                learning_rate,
                rf_model=user_model(model),
                module_of=user_model,
                class_names=FRONTEND_CLASSES,
            )
        except (ValueError, TypeError) as error:
            raise ConfigError(str(error)) from error

    def forward_step(self, epoch: int, step: int, name: str = "forward_step", run_ctx: RunCtx | None = None) -> Any:
        """
        Args:
            name: of the config's function.
            run_ctx: one context for all batches (MiniReturnn).
        """
        outputs = templates(self.session.values, "model_outputs")
        return RFForwardStep(
            self.session.function(name),
            self.templates,
            outputs,
            step=step,
            epoch=epoch,
            float_dtype=self.float_dtype,
            run_ctx=run_ctx,
        )

    def score_keys(self, scores: Mapping[str, Mapping[str, Score]]) -> dict[str, float]:
        return {
            to_returnn_key(f"{dataset}/{name}"): score.mean
            for dataset, entries in scores.items()
            for name, score in entries.items()
        }

    def is_error(self, key: str) -> bool:
        return any(key.endswith(f"_loss_{name}") for name in self.error_names)

    def choose_score(self, names: Sequence[str]) -> str | None:
        return returnn_choice(self.session.values.get("learning_rate_control_error_measure"))(names)

    def split_key(self, key: str, datasets: Sequence[str]) -> tuple[str, str] | None:
        """Data set and loss of a learning-rate file's key; None: it is no score of these data sets."""
        return next(
            ((name, key.removeprefix(f"{name}_loss_")) for name in datasets if key.startswith(f"{name}_loss_")), None
        )
