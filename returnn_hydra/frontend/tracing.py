"""What RETURNN's backends with graphs and traces need to know. Everything runs at once here: these answer so."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from returnn_hydra.frontend.ambient import ambient, ambient_state, select_backend
from returnn_hydra.frontend.tensor import Tensor


def is_static_traceable() -> bool:
    """Whether a config asked for code with fixed shapes; it changes nothing here."""
    return ambient.static_traceable


def set_static_traceable(flag: bool) -> None:
    """Ask for code with fixed shapes."""
    ambient.static_traceable = flag


@contextlib.contextmanager
def set_static_traceable_ctx(flag: bool = True) -> Iterator[None]:
    """Ask for code with fixed shapes inside the `with` block."""
    with ambient_state(static_traceable=flag):
        yield


@contextlib.contextmanager
def control_flow_ctx(ctx: Any = None) -> Iterator[Any]:
    """A place in a graph; there are no graphs here."""
    with ambient_state(control_flow_ctx=ctx):
        yield ctx


def get_current_control_flow_ctx() -> Any:
    """What the innermost `control_flow_ctx` was given; None outside."""
    return ambient.control_flow_ctx


def is_backend_raw_tensor_dim_tag_independent() -> bool:
    """Yes: a raw tensor of torch knows no dims."""
    return True


def get_raw_tensor_type() -> type:
    """torch.Tensor."""
    return torch.Tensor


def select_backend_numpy() -> None:
    """There is only torch; an error."""
    select_backend("numpy")


def select_backend_tf() -> None:
    """There is only torch; an error."""
    select_backend("tensorflow")


def select_backend_returnn_layers_tf() -> None:
    """There is only torch; an error."""
    select_backend("tensorflow-net-dict")


@dataclass(frozen=True)
class TensorLayout:
    """Where a tensor is stored; `like=` of `rf.full` and `rf.random` takes it, too."""

    backend: str
    device: str | None
    storage: Any = None


def get_tensor_layout(x: Tensor) -> TensorLayout:
    """Backend and device of a tensor."""
    return TensorLayout("torch", x.device)
