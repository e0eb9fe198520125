"""Which parameters are optimised, with which weight decay and which share of the learning rate."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

NORMS = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.modules.batchnorm._NormBase,  # batch and instance norms
)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
NO_DECAY_MODULES: tuple[type[nn.Module], ...] = (*NORMS, *EMBEDDINGS)


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float | None = None,
    exclude: Sequence[str] | None = None,
    learning_rate_multipliers: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer; one group for every combination of decay and multiplier.

    Every group has `params` (in the model's order), `learning_rate_multiplier`, and, where it differs from the
    optimizer's own, `weight_decay`. Frozen parameters (`requires_grad = False`) are in no group.

    Args:
        weight_decay: of the groups that have one; None: whatever the optimizer has.
        exclude: globs over parameter names (`encoder.*.bias`) and class names (`LayerNorm`) of parameters without
            decay. Default: biases, norms and embeddings.
        learning_rate_multipliers: `{glob: factor}`; the first glob that matches counts.

    Raises:
        ValueError: a glob or class that matches nothing, a factor below 0, or nothing is left to optimise.
    """
    owners = parameter_owners(model)
    multipliers = dict(learning_rate_multipliers or {})
    for pattern, factor in multipliers.items():
        if not 0 <= factor < math.inf:
            raise ValueError(f"learning_rate_multipliers[{pattern!r}]={factor!r}: expected a number from 0")
    check_patterns("learning_rate_multipliers", multipliers, owners)
    if exclude is not None:
        check_patterns("weight_decay_exclude", exclude, {**owners, **_class_names(owners.values())})
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = weight_decay != 0 and not _excluded(name, owners[name], exclude)
        factor = next((value for glob, value in multipliers.items() if fnmatchcase(name, glob)), 1.0)
        groups.setdefault((decays, float(factor)), []).append(parameter)
    if not groups:
        raise ValueError(f"the model has no parameter to optimise ({len(owners)} parameters, all frozen)")
    return [_group(groups[key], *key, weight_decay) for key in sorted(groups, key=lambda key: (not key[0], key[1]))]


def freeze_parameters(model: nn.Module, patterns: Sequence[str]) -> None:
    """Parameters that match one of the globs get `requires_grad = False`; do it before anything is built on the model.

    Raises:
        ValueError: a glob that matches nothing.
    """
    check_patterns("freeze", patterns, parameter_owners(model))
    for name, parameter in model.named_parameters():
        if matches(name, patterns):
            parameter.requires_grad_(False)


def _group(params: list[nn.Parameter], decays: bool, factor: float, weight_decay: float | None) -> dict[str, Any]:
    group: dict[str, Any] = {"params": params, "learning_rate_multiplier": factor}
    if not decays:
        group["weight_decay"] = 0.0
    elif weight_decay is not None:
        group["weight_decay"] = weight_decay
    return group


def parameter_owners(model: nn.Module) -> dict[str, nn.Module]:
    """Full parameter name to the module that holds it; a shared parameter counts once, under its first name."""
    seen: set[int] = set()
    owners = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                owners[f"{prefix}.{name}" if prefix else name] = module
    return owners


def matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(option: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    """Raise a ValueError for the first pattern that matches none of the names: it is surely a typo."""
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.3)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            shown = ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
            raise ValueError(f"{option}: {pattern!r} matches no parameter{hint} (there is: {shown})")


def _class_names(modules: Iterable[nn.Module]) -> dict[str, None]:
    return {base.__name__: None for module in modules for base in type(module).__mro__ if base is not object}


def _excluded(name: str, owner: nn.Module, exclude: Sequence[str] | None) -> bool:
    """Whether the parameter has no weight decay."""
    if exclude is None:
        local = name.rpartition(".")[2]
        return local.endswith("bias") or local.startswith("bias_") or isinstance(owner, NO_DECAY_MODULES)
    return matches(name, exclude) or any(base.__name__ in exclude for base in type(owner).__mro__)
