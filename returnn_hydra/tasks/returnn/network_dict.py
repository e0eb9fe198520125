"""A config with a network dict: its layers on torch, scores under the TensorFlow engine's names."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn

from returnn_hydra.batch import Batch, Loss, Output, TensorSpec
from returnn_hydra.compat.score_keys import error_key, flatten_scores
from returnn_hydra.compat.tf_optimizer import build_tf_optimizer
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.data.vocab import Vocabulary
from returnn_hydra.engine.scores import Score
from returnn_hydra.network.carry_over import take_parameters
from returnn_hydra.network.errors import NetworkError
from returnn_hydra.network.model import NetworkModel
from returnn_hydra.network.schedule import NetworkSchedule, Stage
from returnn_hydra.optim.learning_rate_control import LearningRateControl
from returnn_hydra.tasks.returnn.dumps import Dumps
from returnn_hydra.tasks.returnn.preload import load_parts
from returnn_hydra.tasks.returnn.session import Session
from returnn_hydra.tasks.returnn.stages import StageRates, check_config
from returnn_hydra.tasks.returnn.streams import network_specs

logger = logging.getLogger(__name__)
KINDS = {"cost": "score", "error": "error"}


class NetworkDict:
    """The recipe of such a config."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.specs: dict[str, TensorSpec] = network_specs(session.values, session.builder)
        self.dumps = Dumps()

    @property
    def num_pretrain_epochs(self) -> int:
        return self.schedule.num_pretrain_epochs

    def files(self) -> Dumps:
        """What `hdf_dump` layers write."""
        return self.dumps

    def model(self, epoch: int, step: int) -> nn.Module:
        """The network of this epoch, with random parameters."""
        self.session.seed_for_model(epoch, step)
        target = self.session.values.get("target")
        network = self._network(max(epoch, 1))
        searched = self._searched_layer()
        try:
            model = NetworkModel(
                network,
                self.specs,
                target=target if isinstance(target, str) else None,
                behavior_version=self.session.values.get("behavior_version") or 0,
                options=self.session.values,
                epoch=max(epoch, 1),
                layers=[searched] if searched is not None and searched in network else (),
                search_only=searched is not None,
                search_in_training=self.session.values.get("search_train_network_layers") or (),
                read_labels=lambda path: Vocabulary(path).labels,
            )
        except NetworkError as error:
            raise ConfigError(f"network: {error}") from error
        return model.to(self.session.device)

    def _searched_layer(self) -> str | None:
        """The layer whose results a search reads; None: the task searches nothing."""
        values = self.session.values
        task = values.get("task", "train")
        if task == "search":
            return str(values.get("search_output_layer") or "output")
        if task == "forward" and values.get("forward_use_search"):
            return str(values.get("forward_output_layer") or "output")
        return None

    @cached_property
    def schedule(self) -> NetworkSchedule:
        """By `network`, `get_network` and `pretrain`."""
        try:
            return NetworkSchedule.from_config(self.session.values)
        except NetworkError as error:
            raise ConfigError(f"network: {error}") from error

    def _network(self, epoch: int) -> Mapping[str, Any]:
        try:
            return self.schedule.network(epoch)
        except NetworkError as error:
            raise ConfigError(f"network: {error}") from error

    def stages(self, last: int) -> list[Stage]:
        """The epochs from 1 to the last one, parted where the network or its `#config` changes."""
        try:
            stages = list(self.schedule.stages(1, last))
        except NetworkError as error:
            raise ConfigError(f"network: {error}") from error
        check_config(stages, self.session.values)
        return stages

    def take_parameters(self, model: nn.Module, before: nn.Module, stage: Stage) -> None:
        """By name and shape, or as `copy_param_mode` and the layers' `custom_param_importer` say."""
        assert isinstance(model, NetworkModel) and isinstance(before, NetworkModel)
        outputs = model.net.roots(search=False, with_losses=True) if stage.resets_outputs else []
        taken = take_parameters(model, before, stage.copy_mode, outputs)
        load_parts(model, taken)
        new = [name for name in model.tf_parameters() if name not in taken]
        logger.info("The network changes at epoch %d; new parameters: %s", stage.first, ", ".join(new) or "none")

    def learning_rate_control(self, rule: LearningRateControl) -> LearningRateControl:
        return StageRates(rule, self.schedule, self.session.values)

    def train_step(self) -> Any:
        def network_losses(model: Any, batch: Batch) -> Mapping[str, Loss]:
            """Costs and errors; in training also the constraints, which are no score."""
            result = model(batch)
            losses = result.all_losses()
            if training:
                self.dumps.leave_out(result.dumps)
            else:
                self.dumps.add(result.dumps, batch.seq_tags)
            return losses if model.training else {name: loss for name, loss in losses.items() if name != "constraints"}

        training = self.session.values.get("task", "train") == "train"
        return network_losses

    def set_progress(self, train_step: Any, model: Any, epoch: int, step: int) -> None:
        model.epoch, model.step = epoch, step

    def optimizer(self, model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        return build_tf_optimizer(self.session.values, model, learning_rate)

    def forward_step(self, epoch: int, step: int, layer: str | None = None) -> Any:
        """The output of one layer, by default of `forward_output_layer`, else `output`, under the name "output"."""
        name = layer or self.session.values.get("forward_output_layer") or "output"
        search = bool(self.session.values.get("forward_use_search"))

        def forward_layer(model: Any, batch: Batch) -> dict[str, Output]:
            model.epoch, model.step = epoch, step
            result = model(batch, with_losses=False, layers=[name], search=search)
            self.dumps.add(result.dumps, batch.seq_tags)
            return {"output": model.layer_output(result, name)}

        return forward_layer

    def score_keys(self, scores: Mapping[str, Mapping[str, Score]]) -> dict[str, float]:
        grouped: dict[str, dict[str, float]] = {}
        for dataset, entries in scores.items():
            for name, score in entries.items():
                kind = KINDS.get(name.partition(":")[0])
                if kind is not None:
                    grouped.setdefault(f"{dataset}_{kind}", {})[name] = score.mean
        return flatten_scores(grouped)

    def is_error(self, key: str) -> bool:
        return "_error" in key

    def choose_score(self, names: Sequence[str]) -> str | None:
        scores: dict[str, dict[str, Score]] = {}
        for position, name in enumerate(names):  # the values only tell which key came from which name
            dataset, _, loss = name.partition("/")
            scores.setdefault(dataset, {})[loss] = Score(float(position), 1.0)
        keys = self.score_keys(scores)
        key = error_key(keys, self.session.values.get("learning_rate_control_error_measure"))
        return names[int(keys[key])] if key is not None else None

    def split_key(self, key: str, datasets: Sequence[str]) -> tuple[str, str] | None:
        for dataset in datasets:
            for kind, word in KINDS.items():
                beginning = f"{dataset}_{word}"
                if key == beginning or key.startswith(beginning + "_"):
                    return dataset, f"{word if word == 'error' else kind}:{key.removeprefix(beginning)[1:] or 'output'}"
        return None
