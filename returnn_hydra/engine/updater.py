"""From losses to an optimizer update: total, backward, accumulation, clipping, the check for bad numbers, the step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from returnn_hydra.batch import Loss
from returnn_hydra.data.callables import by_name
from returnn_hydra.engine.errors import CombinationError, NonFiniteError
from returnn_hydra.engine.finite_check import DeferredCheck, UncheckedUpdate
from returnn_hydra.engine.ranks import Ranks
from returnn_hydra.engine.weight_average import WeightAverage
from returnn_hydra.engine.whole_state import is_sharded
from returnn_hydra.optim.gradients import GradientRules

AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class UpdateRules:
    """How losses become an update."""

    normalization: str = "mean"
    """mean: each loss is divided by its count over all accumulated batches; sum: it is not (RETURNN's convention)."""
    grad_accum_steps: int | Callable[..., int] = 1
    """Batches of an update. A function of (epoch, epoch_continuous, global_train_step), of those that it takes, is
    asked for every batch."""
    apply_incomplete: bool = True
    """At the end of an epoch, apply what has been accumulated though it is less; else forget it, as RETURNN does."""
    step_unit: str = "update"
    """What a step is, for learning-rate schedules and checkpoints: an update, or a batch (RETURNN's convention)."""
    gradients: GradientRules = GradientRules()
    amp: str = "none"
    on_nonfinite: str = "stop"
    max_consecutive_nonfinite: int = 10


class Updater:
    """Makes optimizer steps.

    Accumulated batches, and the batches of several ranks, give the gradient of one large batch: for every loss its
    sum over all of them divided by its count over all of them.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        rules: UpdateRules,
        device: torch.device,
        ranks: Ranks = Ranks(),
        average: WeightAverage | None = None,
        defer_checks: bool | None = None,
    ) -> None:
        """
        Args:
            average: of the parameters; follows every step.
            defer_checks: look for bad numbers only when `check` is called, after updates were made with them. Default:
                on a GPU, where a look is a wait. Not with rules that go on after bad numbers, and not with a scaler.
        """
        self.model = model
        self.average = average
        self.optimizer = optimizer
        self.rules = rules
        self.device = device
        self.ranks = ranks
        self.num_updates = 0
        self.num_batches = 0
        self.num_skipped = 0
        self.gradient_norm: Tensor | None = None
        """Before clipping, of the update that the last batch made; None if it made none."""
        self._consecutive_skipped = 0
        self._ask_wanted = by_name(rules.grad_accum_steps)
        self._wanted = 1 if callable(rules.grad_accum_steps) else rules.grad_accum_steps
        """Batches of the present update."""
        self.scaler = torch.amp.GradScaler(device.type) if rules.amp == "float16" else None
        may_defer = rules.on_nonfinite == "stop" and self.scaler is None
        self.defers_checks = may_defer and (device.type == "cuda" if defer_checks is None else defer_checks)
        self._unchecked = DeferredCheck()
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._reset()

    def _reset(self) -> None:
        self._accumulated = 0
        self._in_parts = False
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, Tensor | float] = {}
        self._gradients: dict[str, list[Any]] = {}
        """By loss, for every parameter its gradient or None."""
        self._seq_tags: list[str] = []

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @property
    def step(self) -> int:
        """Steps done so far, in the rules' unit."""
        return self.num_batches if self.rules.step_unit == "batch" else self.num_updates

    @property
    def accumulates(self) -> bool:
        """Several batches may make an update."""
        return self.rules.grad_accum_steps != 1

    def start_batch(self, epoch: int, epoch_continuous: float) -> None:
        """A batch begins here: forget the gradients of the last update; how many batches make the next one?"""
        self.gradient_norm = None
        if not self._counts:  # before the forward pass, which can use their memory
            self._drop_gradients()
        if callable(self.rules.grad_accum_steps):
            progress = {"epoch": epoch, "epoch_continuous": epoch_continuous, "global_train_step": self.step}
            self._wanted = self._ask_wanted(**progress)

    @property
    def at_boundary(self) -> bool:
        """No batch waits in an unfinished accumulation: the state can be saved."""
        return self._accumulated == 0

    def forget(self) -> None:
        """Throw away what has been accumulated since the last update."""
        self._reset()
        self._drop_gradients()

    def _drop_gradients(self) -> None:
        for parameter in self.parameters:  # torch's zero_grad does this, with a profiler's range around it
            parameter.grad = None

    def is_last_of_update(self, is_last_of_epoch: bool) -> bool:
        """Whether the coming batch completes an update."""
        complete = self._accumulated + 1 >= self._wanted
        return complete or (is_last_of_epoch and self.rules.apply_incomplete)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision for the forward pass, by `amp`."""
        if self.rules.amp == "none":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=AMP_DTYPES[self.rules.amp])

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the model has the parameters that are evaluated: averaged, if there is an average."""
        return self.average.applied() if self.average is not None else contextlib.nullcontext()

    def update(
        self,
        losses: Mapping[str, Loss],
        seq_tags: list[str],
        is_last_of_epoch: bool = False,
        parts_to_come: int | None = None,
    ) -> bool:
        """Add a batch; returns whether this made an optimizer step.

        Args:
            is_last_of_epoch: apply what has been accumulated, also when it is less than `grad_accum_steps` batches.
            parts_to_come: this is a part of a batch that did not fit into memory, and so many more parts follow.

        Raises:
            NonFiniteError: a loss or the gradient is NaN or infinite, and the rules say to stop.
        """
        completes = self.is_last_of_update(is_last_of_epoch) and not parts_to_come
        self._in_parts = self._in_parts or parts_to_come is not None
        optimised = {name: loss for name, loss in losses.items() if not loss.as_error and loss.scale != 0}
        if not optimised:
            raise ValueError(f"train_step gave no loss to optimise: {sorted(losses)} are all errors or have scale 0")
        for name, loss in optimised.items():
            first = name not in self._counts
            self._sums[name] = loss.sum.detach() if first else self._sums[name] + loss.sum.detach()
            self._counts[name] = loss.count if first else self._counts[name] + loss.count
        self._seq_tags += seq_tags
        self._backward(optimised)
        if not parts_to_come:
            self._accumulated += 1
            self.num_batches += 1
        return self._flush(losses) if completes else False

    def end_epoch(self) -> bool:
        """Apply what has been accumulated, or forget it, by the rules; returns whether this made an optimizer step."""
        if self.rules.apply_incomplete:
            return self._flush({})
        self._reset()
        return False

    def _flush(self, losses: Mapping[str, Loss]) -> bool:
        if self._accumulated == 0:
            return False
        if self.accumulates or self._in_parts:
            self._add_up_ranks()
            self._divide_gradients()
        return self._apply(losses)

    def _backward(self, losses: Mapping[str, Loss]) -> None:
        """Add the gradients of a batch, divided by the counts if these are complete."""
        if not self.accumulates and not self._in_parts:
            self._add_up_ranks()
            terms = [loss.sum * (loss.scale * self._factor(name)) for name, loss in losses.items()]
            self._scaled(sum_of(terms)).backward()
        elif len(losses) == 1 or self.rules.normalization == "sum":
            self._scaled(sum_of([loss.sum * loss.scale for loss in losses.values()])).backward()
        else:
            self._backward_by_loss(losses)

    def _backward_by_loss(self, losses: Mapping[str, Loss]) -> None:
        """Several losses, each with a count of its own that is known only at the end: their gradients wait apart."""
        if self.ranks.size > 1:
            raise CombinationError(
                f"grad_accum_steps with the losses {', '.join(losses)}, each divided by a "
                "count of its own: not possible with several ranks; use loss_normalization=sum, or a larger batch_size"
            )
        parameters = self.parameters
        for name, loss in losses.items():
            total = self._scaled(loss.scale * loss.sum)
            new = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
            old = self._gradients.get(name, [None] * len(parameters))
            self._gradients[name] = [
                b if a is None else a if b is None else a + b for a, b in zip(old, new, strict=True)
            ]

    def _divide_gradients(self) -> None:
        if self._gradients:
            for index, parameter in enumerate(self.parameters):
                parts = [g[index] * self._factor(name) for name, g in self._gradients.items() if g[index] is not None]
                parameter.grad = sum_of(parts) if parts else None
        else:
            name = next(iter(self._counts))  # the only one, or the factor is the same for all
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(self._factor(name))

    def _add_up_ranks(self) -> None:
        if self.ranks.size > 1:
            names = list(self._counts)
            values = [torch.as_tensor(self._counts[name], device=self.device) for name in names]
            values += [torch.as_tensor(self._sums[name]) for name in names]
            totals = self.ranks.sum(torch.stack([value.to(torch.float32) for value in values]))
            self._counts = dict(zip(names, totals[: len(names)], strict=True))
            self._sums = dict(zip(names, totals[len(names) :], strict=True))

    def _factor(self, name: str) -> Tensor | float:
        """What the gradient of a sum is multiplied by; the ranks' gradients are averaged, but sums are wanted.

        The sum over nothing is 0, and so is its mean.
        """
        count = self._counts[name]
        if self.rules.normalization == "sum":
            return float(self.ranks.size)
        if isinstance(count, Tensor):
            return self.ranks.size / torch.where(count == 0, 1, count)
        return self.ranks.size / (count or 1)

    def _scaled(self, total: Tensor) -> Tensor:
        return self.scaler.scale(total) if self.scaler else total

    def _apply(self, losses: Mapping[str, Loss]) -> bool:
        """Clip, check, step."""
        if self.defers_checks:
            self._apply_unchecked(losses)
            return True
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        self.gradient_norm = norm = self.rules.gradients.apply(self.parameters, self._common_generator())
        finite = math.isfinite(norm + sum(self._sums.values()))
        if self.scaler and not finite:  # an overflow of the loss scale is no error: the scaler lowers the scale
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif finite:
            self._step()
        else:
            self._on_nonfinite(norm, losses)
        self._reset()
        return finite

    def _apply_unchecked(self, losses: Mapping[str, Loss]) -> None:
        """Clip, step, and keep what `check` will look at."""
        with_gradient = [parameter for parameter in self.parameters if parameter.grad is not None]
        norms = torch._foreach_norm([parameter.grad for parameter in with_gradient])  # type: ignore[misc]
        names = [self._names[id(parameter)] for parameter in with_gradient]
        self.gradient_norm = norm = self.rules.gradients.apply(self.parameters, self._common_generator())
        self._step()
        update = UncheckedUpdate(
            number=self.num_updates,
            finite_if=norm + sum(self._sums.values()),
            gradient_norm=norm,
            norms=dict(zip(names, norms, strict=True)),
            losses={name: replace(loss, sum=loss.sum.detach()) for name, loss in losses.items()},
            seq_tags=self._seq_tags,
        )
        self._unchecked.add(update)
        self._reset()

    def check(self) -> None:
        """Look at the updates that were made unchecked; before anything is saved, and every few updates.

        Raises:
            NonFiniteError: a loss or a gradient was NaN or infinite. The parameters may be bad since then.
        """
        bad = self._unchecked.first_bad()
        if bad is not None:
            ending = "The updates since then are thrown away: the last checkpoint stays the newest"
            raise NonFiniteError(
                _describe(bad.number, bad.gradient_norm, bad.losses, bad.bad_parameters(), bad.seq_tags, ending),
                update=bad.number,
            )

    def _common_generator(self) -> torch.Generator | None:
        """For the gradient noise, where all ranks must draw the same; None: this rank's own random numbers will do."""
        if self.ranks.size == 1 or self.rules.gradients.noise == 0 or is_sharded(self.model):
            return None
        seed = self.ranks.broadcast(int(torch.randint(2**62, ())))
        return torch.Generator(self.device).manual_seed(seed)

    def _step(self) -> None:
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        if self.average is not None:
            self.average.update()
        self.num_updates += 1
        self._consecutive_skipped = 0

    def _on_nonfinite(self, norm: Tensor, losses: Mapping[str, Loss]) -> None:
        self.num_skipped += 1
        self._consecutive_skipped += 1
        if self.rules.on_nonfinite == "skip" and self._consecutive_skipped <= self.rules.max_consecutive_nonfinite:
            return
        bad = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
        ]
        ending = "Nothing was updated"
        raise NonFiniteError(_describe(self.num_updates + 1, norm, losses, bad, self._seq_tags, ending))

    def state_dict(self) -> dict[str, Any]:
        """What is not in the optimizer: counters, and the scaler's scale."""
        return {
            "num_updates": self.num_updates,
            "num_batches": self.num_batches,
            "num_skipped": self.num_skipped,
            "scaler": self.scaler.state_dict() if self.scaler else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_updates = state["num_updates"]
        self.num_batches = state["num_batches"]
        self.num_skipped = state["num_skipped"]
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def _describe(
    number: int, norm: Tensor, losses: Mapping[str, Loss], bad: Sequence[str], seq_tags: Sequence[str], ending: str
) -> str:
    """The message of bad numbers; `bad`: the parameters whose gradients are not finite."""
    values = {name: float(loss.mean.detach()) for name, loss in losses.items()}
    return (
        f"update {number}: gradient norm {float(norm)}, losses {values}; "
        f"bad gradients in {', '.join(bad[:5]) or 'no parameter'}{' ...' if len(bad) > 5 else ''}; "
        f"sequences: {', '.join(seq_tags[:8])}{' ...' if len(seq_tags) > 8 else ''}. {ending}. "
        "on_nonfinite=skip goes on without such batches, on_nonfinite=rollback goes back to the last checkpoint first"
    )


def sum_of(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
