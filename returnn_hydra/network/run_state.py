"""What holds for one pass through the network: modes, the batch, and what the layers report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from returnn_hydra.batch import Loss
from returnn_hydra.network.axis import Axis
from returnn_hydra.network.dumps import Dump
from returnn_hydra.network.named_tensor import NamedTensor


@dataclass
class RunState:
    """One forward pass.

    Attributes:
        train: dropout is on, batch statistics are used.
        search: `choice` layers search instead of reading the target.
        with_losses: targets are there; layers with a loss report it.
        building: the first pass, on made-up data, which makes the parameters.
        data: the external streams.
        batch: the batch axis of the streams.
        kept_states: of layers that go on where the batch before ended, by path; the model keeps them between passes.
        losses: by the path of the layer, in the order of computation.
    """

    train: bool
    search: bool
    with_losses: bool
    building: bool
    device: torch.device
    batch: Axis
    data: dict[str, NamedTensor] = field(default_factory=dict)
    seq_tags: list[str] = field(default_factory=list)
    epoch: int = 1
    step: int = 0
    losses: dict[str, Loss] = field(default_factory=dict)
    errors: dict[str, Loss] = field(default_factory=dict)
    constraints: dict[str, torch.Tensor] = field(default_factory=dict)
    outputs: dict[str, NamedTensor] = field(default_factory=dict)
    dumps: list[Dump] = field(default_factory=list)
    kept_states: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    user: Mapping[str, Any] = field(default_factory=dict)
