"""What a config's functions are told while a training runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from returnn_hydra.batch import Batch, Loss
from returnn_hydra.engine.callback import Callback
from returnn_hydra.engine.device import seed_torch
from returnn_hydra.engine.ranks import Ranks
from returnn_hydra.engine.trainer import Trainer
from returnn_hydra.frontend.steps import call_with_wanted, user_model
from returnn_hydra.tasks.returnn.learning_rate_records import GRADIENT_NORM
from returnn_hydra.tasks.returnn.recipe import Recipe

Hook = Callable[..., Any] | None


class Progress(Callback):
    """Tells the train step how many batches are done."""

    def __init__(self, recipe: Recipe, train_step: Any) -> None:
        self.recipe = recipe
        self.train_step = train_step

    def _tell(self, trainer: Trainer) -> None:
        self.recipe.set_progress(self.train_step, trainer.model, trainer.position.epoch, trainer.updater.step)

    def on_run_start(self, trainer: Trainer) -> None:
        self._tell(trainer)

    def on_epoch_start(self, trainer: Trainer) -> None:
        self._tell(trainer)

    def on_step_end(self, trainer: Trainer, batch: Batch, losses: Mapping[str, Loss]) -> None:
        self._tell(trainer)


class GradientNorm(Callback):
    """The mean norm of an epoch's gradients as one more score of the training (`log_grad_norm`)."""

    def __init__(self, norm_type: float) -> None:
        self.name = f"{GRADIENT_NORM}{f'{norm_type}'.rstrip('0').rstrip('.')}"

    def on_step_end(self, trainer: Trainer, batch: Batch, losses: Mapping[str, Loss]) -> None:
        if (norm := trainer.updater.gradient_norm) is not None:
            trainer.sums.add({self.name: Loss(norm, 1, as_error=True)})


class EpochSeeds(Callback):
    """torch's random numbers as RETURNN has them: seeded before every epoch, and never inside.

    A run that goes on inside of an epoch does so with the state of the generators that its checkpoint holds.

    Args:
        loader_options: `torch_dataloader_opts`: RETURNN's loader draws from the same generator, see `loader_draws`.
    """

    def __init__(self, seed: int, loader_options: Mapping[str, Any]) -> None:
        self.seed = seed
        self.loader_options = loader_options
        self._saved: list[str] = []

    def on_epoch_start(self, trainer: Trainer) -> None:
        if trainer.position.batch == 0:
            epoch = trainer.position.epoch
            seed_torch(trainer.device, epoch_seed(epoch, trainer.updater.step, self.seed, trainer.ranks))
            for _ in range(loader_draws(epoch, self.loader_options)):
                torch.empty((), dtype=torch.int64).random_()
        elif self._saved:
            cpu, *device = (torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8) for text in self._saved)
            torch.set_rng_state(cpu)
            if device and trainer.device.type == "cuda":
                torch.cuda.set_rng_state(device[0], trainer.device)
        self._saved = []

    def state_dict(self) -> dict[str, Any]:
        """The generators' states as hexadecimal text."""
        states = [torch.get_rng_state()]
        if torch.cuda.is_initialized():
            states.append(torch.cuda.get_rng_state())
        return {"generators": [state.numpy().tobytes().hex() for state in states]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._saved = list(state.get("generators", ()))


def loader_draws(epoch: int, options: Mapping[str, Any]) -> int:
    """How many numbers a torch DataLoader over RETURNN's data pipe draws before the first batch of an epoch.

    One seed for the workers and one for the pipe; workers get a new one whenever they begin an epoch, and stay.
    """
    if options.get("num_workers", 1) == 0:
        return 2
    return 3 if epoch == 1 or not options.get("persistent_workers", True) else 1


def epoch_seed(epoch: int, step: int, seed: int, ranks: Ranks = Ranks()) -> int:
    """RETURNN's seed of an epoch."""
    parts = [epoch, step, seed, *([ranks.rank] if ranks.size > 1 else [])]
    digest = hashlib.sha256(b"".join(part.to_bytes(8, "big", signed=True) for part in parts)).digest()
    return int.from_bytes(digest[:4], "big")


class ConfigHooks(Callback):
    """The config's `epoch_start` and `epoch_end`: around the training part of every epoch, and around every evaluation.

    `epoch_end` of the training part comes before the epoch is saved, as in RETURNN.
    """

    def __init__(self, epoch_start: Hook, epoch_end: Hook) -> None:
        self.epoch_start = epoch_start
        self.epoch_end = epoch_end

    def on_epoch_start(self, trainer: Trainer) -> None:
        self._call(self.epoch_start, trainer, "train")

    def on_epoch_trained(self, trainer: Trainer) -> None:
        self._call(self.epoch_end, trainer, "train")

    def on_evaluation_start(self, trainer: Trainer, dataset: str) -> None:
        self._call(self.epoch_start, trainer, dataset)

    def on_evaluation_end(self, trainer: Trainer, dataset: str) -> None:
        self._call(self.epoch_end, trainer, dataset)

    def _call(self, function: Hook, trainer: Trainer, dataset: str) -> None:
        call_hook(function, trainer.model, trainer.position.epoch, trainer.updater.step, dataset)


def call_hook(function: Hook, model: nn.Module, epoch: int, step: int, dataset: str) -> None:
    """Call `epoch_start` or `epoch_end`, if the config has it."""
    if function is not None:
        call_with_wanted(function, {"epoch": epoch, "step": step, "model": user_model(model), "dataset_name": dataset})
