"""A network dict as a torch module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from returnn_hydra.batch import Batch, Loss, Output, TensorSpec
from returnn_hydra.network import embedding_losses as embedding_losses  # registers its losses
from returnn_hydra.network import sequence_losses as sequence_losses  # registers its losses
from returnn_hydra.network.dumps import Dump
from returnn_hydra.network.errors import NetworkError, TooShort, nearest
from returnn_hydra.network.extra import SEARCH, MainScope, plain_names
from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.network.net import Net
from returnn_hydra.network.parameters import ParameterStore, tf_name, torch_name
from returnn_hydra.network.run_state import RunState
from returnn_hydra.network.streams import batch_of_examples, named_streams

BUILD_LENGTHS = (12, 64, 512, 8192)
"""Frames of the made-up sequences that the network is built with; more if a layer needs more."""


class ConfigValues(dict[str, Any]):
    """The config's values, functions and modules among them; a copied model shares them."""

    def __deepcopy__(self, memo: dict[int, Any]) -> ConfigValues:
        return self


@dataclass
class NetworkResult:
    """What one pass gave.

    Attributes:
        outputs: by path, every layer that was computed outside of loops, and the kept ones inside (`output/prob`).
        losses: by path of the layer: what is optimised.
        errors: by path of the layer: only reported.
        constraints: `L2` of every layer that has it, already weighted.
        dumps: what the `hdf_dump` layers want to be written.
    """

    outputs: dict[str, NamedTensor]
    losses: dict[str, Loss] = field(default_factory=dict)
    errors: dict[str, Loss] = field(default_factory=dict)
    constraints: dict[str, Tensor] = field(default_factory=dict)
    dumps: list[Dump] = field(default_factory=list)

    def all_losses(self) -> dict[str, Loss]:
        """What a train step returns: `cost:LAYER`, `error:LAYER`, and `constraints` if there is L2.

        The constraints go to the objective unscaled, as RETURNN adds them to its sum over frames.
        """
        named = {f"cost:{path}": loss for path, loss in self.losses.items()}
        named |= {f"error:{path}": loss for path, loss in self.errors.items()}
        if self.constraints:
            named["constraints"] = Loss(self.total_constraints(), 1.0)
        return named

    def total_constraints(self) -> Tensor:
        return torch.stack(list(self.constraints.values())).sum()

    def objective(self) -> Tensor:
        """RETURNN's objective: scaled sums over frames, plus the constraints."""
        terms = [loss.sum * loss.scale for loss in self.losses.values() if loss.scale]
        terms += list(self.constraints.values())
        return torch.stack(terms).sum() if terms else torch.zeros(())


class NetworkModel(nn.Module):
    """The layers of a network dict, with parameters under RETURNN's names (`fw0/rec/W`).

    `model.train()` and `model.eval()` are RETURNN's train flag.

    Args:
        network: layer name to layer options.
        extern_data: stream name to a `TensorSpec`, or to its options.
        target: default target of losses.
        behavior_version: only for what a config of that version leaves open (defaults of batch_norm, conv).
        options: what functions of the config may ask for by `network.get_config()`.
        layers: compute these, too, besides those that the dict itself asks for (forward or search output layers).
        search: also make the parameters of layers that only a search needs (language models to combine with).
        search_only: make the parameters of a search and no others; what the dict has of losses is not looked at.
        epoch: that the network was made for.
        search_in_training: names of layers that are also computed in search, where the losses are; their losses count.
        read_labels: reads the `vocab_file` that a layer names: the names of all labels.

    Raises:
        NetworkError: unknown layer class, option, or reference, with the layer's name.
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        extern_data: Mapping[str, TensorSpec | Mapping[str, Any]],
        *,
        target: str | None = None,
        behavior_version: int = 0,
        options: Mapping[str, Any] | None = None,
        optimize_move_layers_out: bool = True,
        layers: Iterable[str] = (),
        search: bool = False,
        search_only: bool = False,
        epoch: int = 1,
        search_in_training: Sequence[str] = (),
        read_labels: Callable[[str], Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        self.extern_data = {
            key: spec if isinstance(spec, TensorSpec) else TensorSpec(**spec) for key, spec in extern_data.items()
        }
        self.net = Net(network)
        self.extra_layers = list(layers)
        self.for_search = search or search_only
        self.for_training = not search_only
        self.search_in_training = list(search_in_training)
        self.epoch = epoch
        self.step = 0
        self.kept_states: dict[str, dict[str, Tensor]] = {}
        self.user = {
            "target": target or self._default_target(),
            "behavior_version": behavior_version,
            "extern_data": self.extern_data,
            "config": ConfigValues(options or {}),
            "optimize_move_layers_out": optimize_move_layers_out,
            "read_labels": read_labels,
            **{key: (options or {}).get(key) for key in ("param_variational_noise", "param_dropout")},
        }
        self.store = ParameterStore(self)
        self._build()

    def _default_target(self) -> str:
        keys = [key for key, spec in self.extern_data.items() if not spec.available_for_inference]
        if "classes" in self.extern_data or len(keys) != 1:
            return "classes"
        return keys[0]

    # --- passes

    def train(self, mode: bool = True) -> NetworkModel:
        """RETURNN's train flag; layers that keep their state over an epoch begin anew."""
        self.kept_states.clear()
        return super().train(mode)

    def forward(
        self,
        batch: Batch,
        *,
        search: bool = False,
        with_losses: bool = True,
        layers: Iterable[str] = (),
    ) -> NetworkResult:
        """Compute the network.

        Args:
            batch: holds the streams of `extern_data`; lengths may be on any device.
            search: `choice` layers search.
            with_losses: the targets are there; compute losses and errors.
            layers: compute these, too.
        """
        run = self._run_state(batch, search, with_losses)
        self._compute(run, layers)
        losses, errors = plain_names(run.losses), plain_names(run.errors)
        return NetworkResult(run.outputs, losses, errors, run.constraints, run.dumps)

    def layer_output(self, result: NetworkResult, name: str = "output") -> Output:
        """A layer's output for a forward step: batch first, then time; padding zero.

        Raises:
            NetworkError: it was not computed, or has a beam (use `decide`).
        """
        if name not in result.outputs:
            raise NetworkError(f"layer {name!r} was not computed{nearest(name, result.outputs)}")
        value = result.outputs[name]
        if value.beam_axis is not None:
            raise NetworkError(f"layer {name!r} has several hypotheses per sequence; put a 'decide' layer behind it")
        if value.batch_axis is None:
            raise NetworkError(f"layer {name!r} has no batch axis: {list(value.axes)}")
        time = value.time_axis
        rest = [axis for axis in value.axes if axis not in (value.batch_axis, time)]
        axes = [value.batch_axis, *([time] if time is not None else []), *rest]
        raw = value.zero_padding().to_axes(axes)
        return Output(raw, time.lengths if time is not None else None)

    def _run_state(self, batch: Batch, search: bool, with_losses: bool, building: bool = False) -> RunState:
        device = next((p.device for p in self.parameters()), None)
        device = device or next((p.device for p in self.buffers()), torch.device("cpu"))
        batch_axis, data = named_streams(batch, self.extern_data, device)
        return RunState(
            train=self.training,
            search=search,
            with_losses=with_losses,
            building=building,
            device=device,
            batch=batch_axis,
            data=data,
            seq_tags=list(batch.seq_tags),
            epoch=batch.epoch if not building else self.epoch,
            step=self.step,
            kept_states=self.kept_states,
            user=self.user,
        )

    def _compute(self, run: RunState, layers: Iterable[str] = ()) -> None:
        scope = MainScope(self.net, run, self.store)
        names = self.net.roots(run.search, run.with_losses)
        external = [n for n in names if self.net.layers[n].get("register_as_extern_data")]
        for name in [*external, *[n for n in names if n not in external], *layers]:
            scope.get(name)
        if run.with_losses and not run.search:
            for name in self.search_in_training:
                scope.extra(SEARCH, inside=True).own(name)
        scope.release()

    # --- building

    def _build(self) -> None:
        """Make all parameters: compute the network once on made-up sequences."""
        roots = self.net.roots(search=not self.for_training, with_losses=self.for_training)
        if not roots and (self.for_training or not self.extra_layers):
            raise NetworkError(
                "the network has nothing to compute: no layer is named 'output', has a loss, or is_output_layer"
            )
        rng = np.random.RandomState(1)
        for length in BUILD_LENGTHS:
            try:
                self._build_with(batch_of_examples(self.extern_data, length, rng))
                self._build_length = length
                break
            except TooShort:
                if length == BUILD_LENGTHS[-1]:
                    raise
        self.store.frozen = True

    def _build_with(self, batch: Batch) -> None:
        with torch.no_grad():
            if self.for_training:
                self._compute(self._run_state(batch, search=False, with_losses=True, building=True), self.extra_layers)
            if self.for_search:
                self._compute(self._run_state(batch, search=True, with_losses=False, building=True), self.extra_layers)

    def files_of_parts(self) -> dict[str, Any]:
        """`load_on_init` of sub-networks: prefix of the parameters' names to the option, for who loads checkpoints."""
        return {torch_name(prefix): option for prefix, option in self.store.files.items()}

    def example_pass(self) -> NetworkResult:
        """The outputs on made-up sequences: their axes are those of any batch."""
        rng = np.random.RandomState(1)
        batch = batch_of_examples(self.extern_data, self._build_length, rng)
        run = self._run_state(batch, search=False, with_losses=True, building=True)
        with torch.no_grad():
            self._compute(run)
        return NetworkResult(run.outputs)

    # --- parameters

    def tf_parameters(self) -> dict[str, Tensor]:
        """Parameters and running statistics under RETURNN's names."""
        return {tf_name(name): value for name, value in (*self.named_parameters(), *self.named_buffers())}

    @torch.no_grad()
    def set_parameters(self, values: Mapping[str, Any] | Callable[[str, tuple[int, ...]], Any]) -> None:
        """Fill all parameters: from a dict by RETURNN's names, or by a function of name and shape.

        Raises:
            NetworkError: a name is missing, or a shape does not fit.
        """
        for name, parameter in self.tf_parameters().items():
            shape = tuple(parameter.shape)
            if not callable(values) and name not in values:
                raise NetworkError(f"no value for parameter {name!r}{nearest(name, values)}")
            value = torch.as_tensor(np.asarray(values(name, shape) if callable(values) else values[name]))
            if tuple(value.shape) != shape:
                raise NetworkError(f"parameter {name!r} has shape {shape}, but the value {tuple(value.shape)}")
            parameter.copy_(value)

    def parameter(self, name: str) -> Tensor:
        """One parameter by RETURNN's name."""
        found = self.store.find(name)
        if found is None:
            raise NetworkError(f"there is no parameter {name!r}{nearest(torch_name(name), self.tf_parameters())}")
        return found
