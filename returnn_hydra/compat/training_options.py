"""RETURNN's options of a training as entries of our configuration.

The result is plain data with `_target_` nodes, ready for YAML; only functions of the config stay functions. Each
function takes the config's values (`ReturnnConfig.to_dict()`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from returnn_hydra.compat.checkpoint_cleanup import CleanupRule
from returnn_hydra.compat.dynamic_learning_rate import DynamicLearningRate
from returnn_hydra.compat.stream_specs import stream_nodes
from returnn_hydra.config.errors import ConfigError, nearest

Values = Mapping[str, Any]
Node = dict[str, Any]
_CONTROL = "returnn_hydra.optim.learning_rate_control."
_NEWBOB = ("newbob", "newbob_rel", "newbob_relative", "newbob_abs", "newbob_multi_epoch")
TASKS = {"train": "train", "forward": "forward", "hpx": "forward", "eval": "evaluate", "search": "search"}
"""RETURNN's task to ours."""


def training_options(values: Values) -> dict[str, Any]:
    """Our flat keys for those of RETURNN that are set, without data, model and optimizer.

    The loss is the sum over the frames, as in RETURNN, where the config doesn't say more.

    Raises:
        ConfigError: a value that can't be honoured.
    """
    ours: dict[str, Any] = {"loss_normalization": "sum", "learning_rate": float(values.get("learning_rate", 1.0))}
    ours["seed"] = values.get("random_seed", 42)
    ours["learning_rate_control"] = learning_rate_control_node(values)
    for theirs, name in _RENAMED.items():
        if values.get(theirs) is not None:
            ours[name] = values[theirs]
    if values.get("device"):
        ours["device"] = device(values["device"])
    if "log_verbosity" in values:
        level = values["log_verbosity"]
        ours["log_verbosity"] = max(level) if isinstance(level, list | tuple) else level
    if (steps := values.get("accum_grad_multiple_step")) is not None:
        ours["grad_accum_steps"] = steps
    if amp := values.get("torch_amp") or values.get("torch_amp_options"):
        ours["amp"] = amp["dtype"] if isinstance(amp, Mapping) else amp
    if values.get("stop_on_nonfinite_train_score") is False or values.get("gradient_nan_inf_filter"):
        ours["on_nonfinite"] = "skip"
    ours.update(retention(values))
    return ours


_RENAMED = {
    "num_epochs": "num_epochs",
    "epoch": "load_epoch",
    "load_epoch": "load_epoch",
    "gradient_clip": "max_grad_value",
    "gradient_clip_global_norm": "max_grad_norm",
    "gradient_clip_norm": "max_grad_norm_per_tensor",
    "gradient_noise": "gradient_noise",
    "output_file": "output_file",
}


def device(name: str) -> str:
    """`gpu`, `gpu1`, `cuda`, ... in our words.

    Raises:
        ConfigError: unknown.
    """
    found = re.fullmatch(r"(auto|cpu|mps|gpu|cuda|gpu:?(\d+)|cuda:?(\d+))", name.strip().lower())
    if not found:
        raise ConfigError(f"device={name!r}: expected auto, cpu, gpu, gpu0, cuda, cuda:0 or mps")
    number = found[2] or found[3]
    if number is not None:
        return f"cuda:{number}"
    return {"cuda": "gpu"}.get(found[1], found[1])


def task(values: Values) -> str:
    """Our task.

    Raises:
        ConfigError: RETURNN's task has no counterpart.
    """
    name = values.get("task", "train")
    if name not in TASKS:
        raise ConfigError(f"task={name!r}: expected one of {', '.join(TASKS)}{nearest(str(name), TASKS)}")
    return TASKS[name]


def learning_rate_control_node(values: Values) -> Node:
    """The node of the rule, with RETURNN's choice of the deciding score.

    Raises:
        ConfigError: an unknown rule.
    """
    name = values.get("learning_rate_control", "constant")
    if name not in ("constant", *_NEWBOB):
        known = ("constant", *_NEWBOB)
        raise ConfigError(f"learning_rate_control={name!r}: expected one of {', '.join(known)}{nearest(name, known)}")
    node: Node = {"_target_": _CONTROL + ("Constant" if name == "constant" else "Newbob")}
    if values.get("learning_rates") is not None:
        rates = values["learning_rates"]
        node["learning_rates"] = dict(rates) if isinstance(rates, Mapping) else [float(rate) for rate in rates]
    if values.get("dynamic_learning_rate") is not None:
        node["schedule"] = DynamicLearningRate(values["dynamic_learning_rate"])
    if name != "constant":
        measure = values.get("learning_rate_control_error_measure")
        node["score"] = {"_target_": "returnn_hydra.compat.score_keys.returnn_choice", "measure": measure}
        node.update(_newbob_options(name, values))
    return node


def _newbob_options(name: str, values: Values) -> Node:
    def first(*keys: str) -> Any:
        return next((values[key] for key in keys if values.get(key) is not None), None)

    relative = name != "newbob_abs"
    options = {
        "decay": first("learning_rate_decay", "newbob_learning_rate_decay"),
        "growth": first("learning_rate_growth", "newbob_learning_rate_growth"),
        "threshold": first("newbob_relative_error_threshold" if relative else "newbob_error_threshold"),
        "min_learning_rate": first("min_learning_rate"),
        "min_epochs_per_rate": first("learning_rate_control_min_num_epochs_per_new_lr"),
        "relative_to_rate": (first("learning_rate_control_relative_error_relative_lr") or None) if relative else None,
    }
    if not relative:
        options["change"] = "absolute"
    elif values.get("newbob_relative_error_div_by_old"):
        options["change"] = "relative_to_old"
    if name == "newbob_multi_epoch":
        num_epochs = first("newbob_multi_num_epochs") or 5
        threshold = options["threshold"] if options["threshold"] is not None else -0.01
        grow = first("newbob_relative_error_grow_threshold")
        options["num_epochs"] = num_epochs
        options["update_interval"] = first("newbob_multi_update_interval") or num_epochs
        options["growth_threshold"] = threshold if grow is None else grow
    return {key: value for key, value in options.items() if value is not None}


def retention(values: Values) -> dict[str, Any]:
    """`cleanup_old_models` as our keys; RETURNN also keeps the best by every other score (see CleanupRule).

    Raises:
        ConfigError: a wrong option.
    """
    try:
        rule = CleanupRule.from_config(values.get("cleanup_old_models"))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if rule is None:
        return {}
    return {"keep_last": rule.keep_last_n, "keep_best": rule.keep_best_n, "keep_epochs": sorted(rule.keep or ())}


def extern_data_node(values: Values) -> dict[str, Node]:
    """The entries of our extern_data, from `extern_data` without Dim objects, or from `num_inputs` and `num_outputs`.

    Raises:
        ConfigError: there is neither, or an entry has axes that only the frontend knows.
    """
    entries = values.get("extern_data")
    if entries is None:
        entries = _from_num_outputs(values)
    return stream_nodes(entries, "extern_data")


def _from_num_outputs(values: Values) -> dict[str, Node]:
    outputs, inputs = values.get("num_outputs"), values.get("num_inputs")
    if outputs is None and inputs is None:
        raise ConfigError("extern_data is missing: {stream: {dim, sparse, shape, ...}}")
    entries = dict(outputs) if isinstance(outputs, Mapping) else {} if outputs is None else {"classes": [outputs, 1]}
    if "data" not in entries and inputs is not None:
        entries["data"] = [inputs, 2]
    return {name: _from_dim_and_ndim(value) for name, value in entries.items()}


def _from_dim_and_ndim(value: Any) -> Node:
    """`dim`, `[dim, ndim]` or a dict; one axis means labels."""
    if isinstance(value, Mapping):
        return dict(value)
    dim, ndim = value if isinstance(value, list | tuple) else (value, 1)
    return {"dim": dim, "sparse": ndim == 1}
