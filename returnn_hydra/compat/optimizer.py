"""RETURNN's `optimizer` dict as a torch optimizer, with RETURNN's parameter groups.

Its rule: with a weight decay above 0 there are two groups, both sorted by name: parameters that decay, and the others,
whose own name ends with `bias`, or whose module is of a blacklisted class (default: LayerNorm, Embedding).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from returnn_hydra.config.errors import nearest
from returnn_hydra.optim.lion import Lion
from returnn_hydra.optim.param_groups import parameter_owners

GROUP_OPTIONS = ("weight_decay_modules_blacklist", "weight_decay_custom_include_check", "param_groups_custom")
OLD_STYLE = ("adam", "nadam", "rmsprop", "adadelta", "adagrad")
"""Keys of old configs that are set to True instead of `optimizer`."""
OptimizerClass = Callable[..., torch.optim.Optimizer]


def optimizer_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The `optimizer` dict of a config: as it is, from its name, or from old keys like `adam = True`.

    Raises:
        ValueError: there is no optimizer, or more than one.
    """
    value = values.get("optimizer")
    if isinstance(value, Mapping):
        return dict(value)
    if value is not None:
        return {"class": value}
    chosen = [name for name in OLD_STYLE if values.get(name)]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} are set: one optimizer is needed")
    if not chosen and values.get("momentum") is None:
        raise ValueError(
            'no optimizer is set; write e.g. optimizer = {"class": "adamw", "weight_decay": 0.01}'
            f"{nearest('optimizer', [key for key in values if key.startswith('opt')])}"
        )
    options: dict[str, Any] = {"class": chosen[0] if chosen else "sgd"}
    if values.get("momentum") is not None and options["class"] in ("sgd", "rmsprop"):
        options["momentum"] = values["momentum"]
    if values.get("optimizer_epsilon") is not None:
        options["eps"] = values["optimizer_epsilon"]
    return options


def build_optimizer(
    options: Mapping[str, Any],
    model: nn.Module,
    learning_rate: float,
    *,
    rf_model: Any = None,
    module_of: Callable[[nn.Module], Any] = lambda module: module,
    class_names: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer over the model's parameters.

    Args:
        options: RETURNN's `optimizer`, with `class` and whatever that class takes.
        rf_model: given to `param_groups_custom`.
        module_of: the object behind a torch module that wraps one of the frontend.
        class_names: further classes that a blacklist may name, e.g. `{"rf.LayerNorm": ...}`. Those named LayerNorm and
            Embedding are in the default blacklist.

    Raises:
        ValueError: unknown optimizer or blacklisted class, a learning rate in the options, a weight decay where the
            optimizer has none.
        TypeError: an option that the optimizer doesn't have.
    """
    arguments = dict(options)
    optimizer_class = resolve_optimizer(arguments.pop("class", None))
    arguments = _renamed(arguments)
    group_options = {name: arguments.pop(name) for name in GROUP_OPTIONS if name in arguments}
    names = {**_torch_classes(), **(class_names or {})}
    decay = arguments.get("weight_decay") or 0.0
    if decay and "weight_decay" not in inspect.signature(optimizer_class).parameters:
        raise ValueError(f"optimizer: {_name(optimizer_class)} has no weight_decay")
    if group_options.get("param_groups_custom"):
        groups = _call_by_name(
            group_options["param_groups_custom"],
            model=model,
            rf_model=rf_model,
            optimizer_class=optimizer_class,
            optimizer_opts=arguments,
        )
        groups = [{"learning_rate_multiplier": 1.0, **group, "params": list(group["params"])} for group in groups]
    elif decay:
        groups = _two_groups(model, decay, group_options, names, module_of)
    else:
        groups = [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]
    optimizer = optimizer_class(groups, **{"lr": learning_rate, **arguments})
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.setdefault("learning_rate_multiplier", 1.0)
    return optimizer


def resolve_optimizer(wanted: Any) -> OptimizerClass:
    """The class for a name (any case, also RETURNN's own dotted name of Lion), a class or a function.

    Raises:
        ValueError: no such optimizer.
    """
    if callable(wanted):
        return wanted
    classes: dict[str, OptimizerClass] = {
        name.lower(): value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }
    classes["lion"] = Lion
    if not isinstance(wanted, str):
        raise ValueError(
            f"optimizer: class={wanted!r}: expected a name ({', '.join(sorted(classes))}), a class or a function"
        )
    word = wanted.rpartition(".")[2].lower().removesuffix("optimizer")
    if word not in classes or ("." in wanted and not wanted.startswith(("returnn.", "torch.optim."))):
        raise ValueError(f"optimizer: no {wanted!r}{nearest(word, classes)} (there is: {', '.join(sorted(classes))})")
    return classes[word]


def _renamed(arguments: dict[str, Any]) -> dict[str, Any]:
    """torch's names of the options."""
    for name in ("lr", "learning_rate"):
        if name in arguments:
            raise ValueError(f"optimizer: {name!r} is set outside of the optimizer, as learning_rate")
    if "epsilon" in arguments:
        arguments["eps"] = arguments.pop("epsilon")
    if "beta1" in arguments or "beta2" in arguments:
        arguments["betas"] = (arguments.pop("beta1", 0.9), arguments.pop("beta2", 0.999))
    if isinstance(arguments.get("betas"), list):
        arguments["betas"] = tuple(arguments["betas"])
    return arguments


def _two_groups(
    model: nn.Module,
    decay: float,
    options: Mapping[str, Any],
    names: Mapping[str, Any],
    module_of: Callable[[nn.Module], Any],
) -> list[dict[str, Any]]:
    """The decaying parameters, and the others."""
    if "weight_decay_modules_blacklist" in options:
        blacklist = _classes(options["weight_decay_modules_blacklist"] or (), names)
    else:
        blacklist = tuple(kind for name, kind in names.items() if name.endswith((".LayerNorm", ".Embedding")))
    check = options.get("weight_decay_custom_include_check")
    parameters = dict(model.named_parameters())
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, owner in sorted(parameter_owners(model).items()):
        if not parameters[name].requires_grad:
            continue
        module = module_of(owner)
        verdict = _call_by_name(check, module=module, full_param_name=name) if check else None
        if verdict is None:
            verdict = not name.rpartition(".")[2].endswith("bias") and not isinstance(module, blacklist)
        (decaying if verdict else others).append(parameters[name])
    groups = [{"params": decaying, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _torch_classes() -> dict[str, Any]:
    return {f"torch.nn.{name}": kind for name, kind in vars(nn).items() if isinstance(kind, type)}


def _classes(wanted: Iterable[Any], names: Mapping[str, Any]) -> tuple[type, ...]:
    """Classes from classes and names like `torch.nn.LayerNorm`."""
    found = []
    for entry in wanted:
        if isinstance(entry, str) and entry not in names:
            raise ValueError(f"weight_decay_modules_blacklist: no class {entry!r}{nearest(entry, names)}")
        found.append(names[entry] if isinstance(entry, str) else entry)
    return tuple(found)


def _call_by_name(function: Callable[..., Any], **offered: Any) -> Any:
    """Call with those of the offered arguments that the function takes."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return function(**offered)
    names: Sequence[str] = [parameter.name for parameter in parameters]
    return function(**{name: value for name, value in offered.items() if name in names})


def _name(optimizer_class: OptimizerClass) -> str:
    return getattr(optimizer_class, "__name__", repr(optimizer_class))
