"""From losses to an optimizer update: total, backward, accumulation, clipping, the check for bad numbers, the step."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from returnn_hydra.batch import Loss
from returnn_hydra.engine.errors import NonFiniteError
from returnn_hydra.optim.gradients import GradientRules

AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class UpdateRules:
    """How losses become an update."""

    normalization: str = "mean"
    """mean: each loss is divided by its count over all accumulated batches; sum: it is not (RETURNN's convention)."""
    grad_accum_steps: int = 1
    gradients: GradientRules = GradientRules()
    amp: str = "none"
    on_nonfinite: str = "stop"
    max_consecutive_nonfinite: int = 10


class Updater:
    """Makes optimizer steps.

    Accumulated batches give the gradient of one large batch: sums of losses over sums of counts.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, rules: UpdateRules, device: torch.device
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.rules = rules
        self.device = device
        self.num_updates = 0
        self.num_skipped = 0
        self._consecutive_skipped = 0
        self._accumulated = 0
        self._count: Tensor | float = 0.0
        self._value: Tensor | float = 0.0
        self._seq_tags: list[str] = []
        self.scaler = torch.amp.GradScaler(device.type) if rules.amp == "float16" else None

    @property
    def at_boundary(self) -> bool:
        """No batch waits in an unfinished accumulation: the state can be saved."""
        return self._accumulated == 0

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision for the forward pass, by `amp`."""
        if self.rules.amp == "none":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=AMP_DTYPES[self.rules.amp])

    def update(self, losses: Mapping[str, Loss], seq_tags: list[str]) -> bool:
        """Add a batch; returns whether this made an optimizer step.

        Raises:
            NonFiniteError: a loss or the gradient is NaN or infinite, and the rules say to stop.
        """
        if self._accumulated == 0:
            self.optimizer.zero_grad(set_to_none=True)
        total, count = self._total(losses)
        self._seq_tags += seq_tags
        self._accumulated += 1
        self._count = self._count + count
        self._value = self._value + total.detach()
        (self.scaler.scale(total) if self.scaler else total).backward()
        if self._accumulated < self.rules.grad_accum_steps:
            return False
        return self.flush(losses)

    def flush(self, losses: Mapping[str, Loss] | None = None) -> bool:
        """Apply what has been accumulated, also when it is less than `grad_accum_steps` batches."""
        if self._accumulated == 0:
            return False
        if self.rules.grad_accum_steps > 1 and self.rules.normalization == "mean":
            self._scale_gradients(1.0 / self._count)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        norm = self.rules.gradients.apply(parameters)
        finite = bool(torch.isfinite(norm + self._value))
        if self.scaler and not finite:  # an overflow of the loss scale is no error: the scaler lowers the scale
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif finite:
            self._step()
        else:
            self._on_nonfinite(norm, losses)
        self._accumulated, self._count, self._value, self._seq_tags = 0, 0.0, 0.0, []
        return finite

    def _step(self) -> None:
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.num_updates += 1
        self._consecutive_skipped = 0

    def _total(self, losses: Mapping[str, Loss]) -> tuple[Tensor, Tensor | float]:
        """What backward runs on, and the count it still has to be divided by (1 when it is complete)."""
        optimised = {name: loss for name, loss in losses.items() if not loss.as_error and loss.scale != 0}
        if not optimised:
            raise ValueError(f"train_step gave no loss to optimise: {sorted(losses)} are all errors or have scale 0")
        if self.rules.normalization == "sum":
            return sum_of([loss.scale * loss.sum for loss in optimised.values()]), 0.0
        if self.rules.grad_accum_steps == 1:
            return sum_of([loss.scale * loss.mean for loss in optimised.values()]), 0.0
        counts = [
            torch.as_tensor(loss.count, dtype=torch.float64, device=loss.sum.device) for loss in optimised.values()
        ]
        if len(counts) > 1 and not all(torch.equal(count, counts[0]) for count in counts[1:]):
            raise ValueError(
                "grad_accum_steps > 1 needs losses with one common count, "
                f"got { ({name: float(loss.count) for name, loss in optimised.items()}) }"
            )
        return sum_of([loss.scale * loss.sum for loss in optimised.values()]), counts[0]

    def _scale_gradients(self, factor: Tensor | float) -> None:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    def _on_nonfinite(self, norm: Tensor, losses: Mapping[str, Loss] | None) -> None:
        self.num_skipped += 1
        self._consecutive_skipped += 1
        if self.rules.on_nonfinite == "skip" and self._consecutive_skipped <= self.rules.max_consecutive_nonfinite:
            return
        bad = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
        ]
        values = {name: float(loss.mean) for name, loss in (losses or {}).items()}
        raise NonFiniteError(
            f"update {self.num_updates + 1}: gradient norm {float(norm)}, losses {values}; "
            f"bad gradients in {', '.join(bad[:5]) or 'no parameter'}{' ...' if len(bad) > 5 else ''}; "
            f"sequences: {', '.join(self._seq_tags[:8])}{' ...' if len(self._seq_tags) > 8 else ''}. "
            "Nothing was updated; on_nonfinite=skip goes on without such batches"
        )

    def state_dict(self) -> dict[str, Any]:
        """What is not in the optimizer: counters, and the scaler's scale."""
        return {
            "num_updates": self.num_updates,
            "num_skipped": self.num_skipped,
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_updates = state["num_updates"]
        self.num_skipped = state["num_skipped"]
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def sum_of(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
