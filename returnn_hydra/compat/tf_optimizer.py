"""The optimizers of configs with a network dict: TensorFlow's rules where they differ from torch's.

Adam there adds epsilon to the uncorrected root, its Nadam has no momentum schedule, RMSProp adds epsilon below the root
and starts at 1, Adagrad starts at 0.1. RETURNN's default epsilon is 1e-16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from returnn_hydra.compat.optimizer import optimizer_options
from returnn_hydra.config.errors import ConfigError, nearest

EPSILON = 1e-16


class TFAdam(torch.optim.Optimizer):
    """lr_t = lr * sqrt(1 - beta2^t) / (1 - beta1^t);  w -= lr_t * m / (sqrt(v) + epsilon).

    Args:
        nesterov: the step goes along beta1 * m + (1 - beta1) * g instead of m (Dozat 2016, without schedule).
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = EPSILON,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "beta1": beta1, "beta2": beta2, "epsilon": epsilon, "nesterov": nesterov}
        super().__init__(params, {**defaults, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        state["step"] += 1
        beta1, beta2 = group["beta1"], group["beta2"]
        mean = state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        rate = group["lr"] * math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
        direction = mean * beta1 + gradient * (1 - beta1) if group["nesterov"] else mean
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(direction, square.sqrt().add_(group["epsilon"]), value=-rate)


class TFRMSProp(torch.optim.Optimizer):
    """s = decay * s + (1 - decay) * g^2;  m = momentum * m + lr * g / sqrt(s + epsilon);  w -= m. s starts at 1."""

    def __init__(
        self, params: Any, lr: float, decay: float = 0.9, momentum: float = 0.0, epsilon: float = EPSILON
    ) -> None:
        super().__init__(params, {"lr": lr, "decay": decay, "momentum": momentum, "epsilon": epsilon})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient, state = parameter.grad, self.state[parameter]
                if gradient is None:
                    continue
                if not state:
                    state.update(square=torch.ones_like(parameter), momentum=torch.zeros_like(parameter))
                square = state["square"].mul_(group["decay"]).addcmul_(gradient, gradient, value=1 - group["decay"])
                scaled = gradient * (square + group["epsilon"]).rsqrt()
                parameter.sub_(state["momentum"].mul_(group["momentum"]).add_(scaled, alpha=group["lr"]))


def _nadam(params: Any, lr: float, **options: Any) -> torch.optim.Optimizer:
    return TFAdam(params, lr, nesterov=True, **options)


def _momentum(
    params: Any, lr: float, momentum: float = 0.9, use_nesterov: bool = False, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr, momentum=momentum, nesterov=use_nesterov, weight_decay=weight_decay)


def _adadelta(params: Any, lr: float, rho: float = 0.95, epsilon: float = EPSILON) -> torch.optim.Optimizer:
    return torch.optim.Adadelta(params, lr, rho=rho, eps=epsilon)


def _adagrad(params: Any, lr: float, initial_accumulator_value: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(params, lr, initial_accumulator_value=initial_accumulator_value, eps=0.0)


def _sgd(params: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr)


CLASSES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": TFAdam,
    "adamw": TFAdam,
    "nadam": _nadam,
    "momentum": _momentum,
    "rmsprop": TFRMSProp,
    "adadelta": _adadelta,
    "adagrad": _adagrad,
    "sgd": _sgd,
    "gradientdescent": _sgd,
}
WITH_EPSILON = ("adam", "adamw", "nadam", "rmsprop", "adadelta")


def build_tf_optimizer(values: Mapping[str, Any], model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """The optimizer for a network dict's config; without any, plain gradient descent.

    Raises:
        ConfigError: an unknown optimizer or option.
    """
    chosen = any(values.get(key) for key in ("optimizer", "adam", "nadam", "rmsprop", "adadelta", "adagrad"))
    options: dict[str, Any]
    try:
        options = optimizer_options(values) if chosen or values.get("momentum") else {"class": "sgd"}
    except ValueError as error:
        raise ConfigError(str(error)) from error
    wanted = options.pop("class", "sgd")
    name = str(wanted).rpartition(".")[2].lower().removesuffix("optimizer")
    if name not in CLASSES:
        raise ConfigError(f"optimizer: no {wanted!r}{nearest(name, CLASSES)} (there is: {', '.join(CLASSES)})")
    if name == "sgd" and "momentum" in options:
        name = "momentum"
    renamed = {"eps": "epsilon"}
    options = {renamed.get(key, key): value for key, value in options.items() if key != "use_locking"}
    if isinstance(options.get("betas"), list | tuple):
        options["beta1"], options["beta2"] = options.pop("betas")
    if name in WITH_EPSILON:
        options.setdefault("epsilon", values.get("optimizer_epsilon", EPSILON))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        return CLASSES[name](parameters, learning_rate, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer: {error}") from error
