"""Mixed precision outside of training."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from returnn_hydra.compat.training_options import training_options
from returnn_hydra.engine.updater import AMP_DTYPES
from returnn_hydra.tasks.returnn.session import Session


def autocast(session: Session) -> contextlib.AbstractContextManager[Any]:
    """`torch_amp` as a context."""
    amp = training_options(session.values).get("amp", "none")
    if amp == "none":
        return contextlib.nullcontext()
    return torch.autocast(session.device.type, dtype=AMP_DTYPES[amp])
