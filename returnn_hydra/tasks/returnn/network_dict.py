"""A config with a network dict: its layers on torch, scores under the TensorFlow engine's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from returnn_hydra.batch import Batch, Loss, Output, TensorSpec
from returnn_hydra.compat.score_keys import error_key, flatten_scores
from returnn_hydra.compat.tf_optimizer import build_tf_optimizer
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.engine.scores import Score
from returnn_hydra.frontend.steps import call_with_wanted
from returnn_hydra.network.errors import NetworkError
from returnn_hydra.network.model import NetworkModel
from returnn_hydra.tasks.returnn.session import Session
from returnn_hydra.tasks.returnn.streams import network_specs

KINDS = {"cost": "score", "error": "error"}


class NetworkDict:
    """The recipe of such a config."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.specs: dict[str, TensorSpec] = network_specs(session.values, session.builder)

    def model(self, epoch: int, step: int) -> nn.Module:
        """The network of this epoch, with random parameters."""
        self.session.seed_for_model(epoch, step)
        target = self.session.values.get("target")
        try:
            model = NetworkModel(
                self._network(max(epoch, 1)),
                self.specs,
                target=target if isinstance(target, str) else None,
                behavior_version=self.session.values.get("behavior_version") or 0,
                options=self.session.values,
                epoch=max(epoch, 1),
            )
        except NetworkError as error:
            raise ConfigError(f"network: {error}") from error
        return model.to(self.session.device)

    def check_constant(self, first: int, last: int) -> None:
        """
        Raises:
            ConfigError: `get_network` gives another network at a later epoch of this training.
        """
        if not callable(self.session.values.get("get_network") or self.session.values.get("network")):
            return
        network = self._network(first)
        for epoch in range(first + 1, last + 1):
            if not _same(self._network(epoch), network):
                raise ConfigError(
                    f"get_network: the network of epoch {epoch} differs from that of epoch {first}; train them in"
                    " several runs (num_epochs, import_model_train_epoch1)"
                )

    def _network(self, epoch: int) -> Mapping[str, Any]:
        values = self.session.values
        function = values.get("get_network") or values.get("network")
        found = call_with_wanted(function, {"epoch": epoch}) if callable(function) else function
        if not isinstance(found, Mapping):
            raise ConfigError(f"network: expected a dict of layers, found {type(found).__name__}")
        return found

    def train_step(self) -> Any:
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


def _same(one: Any, other: Any) -> bool:
    """Whether two networks are the same, functions aside."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return (callable(one) and callable(other)) or one == other


def network_losses(model: Any, batch: Batch) -> Mapping[str, Loss]:
    """The train step: costs and errors; in training also the constraints, which are no score."""
    losses = model(batch).all_losses()
    return losses if model.training else {name: loss for name, loss in losses.items() if name != "constraints"}
