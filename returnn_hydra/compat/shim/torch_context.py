"""returnn.torch.context, as in MiniReturnn"""

from __future__ import annotations

from typing import Any

from returnn_hydra.frontend.run_ctx import Loss, RunCtx, get_run_ctx, init_load_run_ctx, reset_run_ctx
from returnn_hydra.frontend.run_ctx import init_forward_step_run_ctx as _init_forward
from returnn_hydra.frontend.run_ctx import init_train_step_run_ctx as _init_train

__all__ = [
    "Loss",
    "RunCtx",
    "get_run_ctx",
    "init_forward_step_run_ctx",
    "init_load_run_ctx",
    "init_train_step_run_ctx",
    "reset_run_ctx",
]


def init_train_step_run_ctx(device: str | None = None, engine: Any = None, epoch: int = 1, **options: Any) -> None:
    """Begin training steps."""
    _init_train(device=device, engine=engine, epoch=epoch, **options)


def init_forward_step_run_ctx(device: str | None = None, engine: Any = None, epoch: int = 1, **options: Any) -> None:
    """Begin forward steps."""
    _init_forward(device=device, engine=engine, epoch=epoch, **options)
