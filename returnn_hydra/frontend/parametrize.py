"""Parametrisations: what a module sees as its parameter is computed from it (weight noise, weight dropout)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from returnn_hydra.frontend.module import Module
from returnn_hydra.frontend.parameter import Parameter
from returnn_hydra.frontend.rand import dropout, random_normal
from returnn_hydra.frontend.run_ctx import get_run_ctx
from returnn_hydra.frontend.tensor import Tensor

_CLASSES: dict[tuple[type, str], type] = {}


def _storage(name: str) -> str:
    return f"_parametrized_{name}"


def register_parametrization(
    module: Module, param_name: str, parametrization: Callable[[Tensor], Tensor], *, keep_existing_param: bool = True
) -> Module:
    """From now on `module.<param_name>` gives parametrization(parameter); the parameter keeps its name in
    checkpoints."""
    parameter = vars(module).get(param_name)
    if not isinstance(parameter, Parameter):
        names = [name for name, _ in module.own_parameters()]
        raise ValueError(f"register_parametrization: {module} has no parameter '{param_name}'; it has {names}")
    vars(module).setdefault(_storage(param_name), []).append(parametrization)
    cls = type(module)
    if not isinstance(vars(cls).get(param_name), property):
        module.__class__ = _parametrized_class(cls, param_name)
    return module


def _parametrized_class(cls: type, name: str) -> type:
    if (cls, name) not in _CLASSES:

        def get(self: Any) -> Any:
            value = vars(self)[name]
            for function in vars(self).get(_storage(name), []):
                value = function(value)
            return value

        def put(self: Any, value: Any) -> None:
            vars(self)[name] = value

        _CLASSES[cls, name] = type(f"Parametrized{cls.__name__}", (cls,), {name: property(get, put)})
    return _CLASSES[cls, name]


def remove_parametrization(module: Module, param_name: str) -> Module:
    """The plain parameter again."""
    vars(module).pop(_storage(param_name), None)
    return module


def is_parametrized(module: Module, param_name: str | None = None) -> bool:
    """Whether a parameter (or any) of the module is parametrised."""
    if param_name is not None:
        return bool(vars(module).get(_storage(param_name)))
    return any(name.startswith("_parametrized_") and functions for name, functions in vars(module).items())


class WeightDropout:
    """Some values of the parameter are 0 in training."""

    def __init__(self, drop_prob: float) -> None:
        self.drop_prob = drop_prob

    def __call__(self, param: Tensor) -> Tensor:
        return dropout(param, self.drop_prob)


class WeightNoise:
    """Normal noise on the parameter in training."""

    def __init__(self, std: float) -> None:
        self.std = std

    def __call__(self, param: Tensor) -> Tensor:
        if not get_run_ctx().is_train_flag_enabled(func=WeightNoise.__call__):
            return param
        return param + random_normal(param.dims, dtype=param.dtype, device=param.device, stddev=self.std)


def weight_dropout(module: Module, param_name: str, *, drop_prob: float) -> Module:
    """Dropout on a parameter."""
    return register_parametrization(module, param_name, WeightDropout(drop_prob))


def weight_noise(module: Module, param_name: str, *, std: float) -> Module:
    """Noise on a parameter."""
    return register_parametrization(module, param_name, WeightNoise(std))
