"""The name of a run's folder: stable, so that the same command finds its own checkpoints."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

from returnn_hydra.config.compose import override_key

NOT_IN_NAME = frozenset(
    "task name run outputs data_folder overrides allow_targets device num_threads log_verbosity log_every num_epochs "
    "load_epoch forward_step forward_callback forward_data evaluate_data model_outputs search search_output "
    "replay_file callbacks keep_last keep_best keep_epochs score checkpoint_every stop_after "
    "steal_lock allow_changed on_oom debug check_data distributed_timeout "
    "datasets model experiment returnn_config".split()
)
"""Keys that don't change what is trained, and the groups that are in the name anyway."""


def run_name(choices: Mapping[str, str | None], overrides: Sequence[str], defaults: Mapping[str, str | None]) -> str:
    """`<datasets>-<model>` (or the experiment's name), and the overrides that change the training.

    Args:
        choices: the chosen option of every group.
        overrides: the `key=value` words of the command line.
        defaults: the option of every group when nothing is said.
    """
    experiment = choices.get("experiment")
    base = experiment or f"{choices.get('datasets')}-{choices.get('model')}"
    changes = []
    for word in overrides:
        key, _, value = word.partition("=")
        name = override_key(word)
        in_name = name not in NOT_IN_NAME and name.split(".")[0] not in NOT_IN_NAME - {"datasets", "model"}
        if in_name and not (key == name and defaults.get(name, _ANY) == value):
            changes.append(f"{key}={value}")
        elif experiment and name in ("datasets", "model"):
            changes.append(word)
    return safe_file_name(",".join([base, *sorted(changes)]))


_ANY = object()


def safe_file_name(text: str, most: int = 120) -> str:
    """`text` with only letters, digits and `.,_=+-`; with a hash of the whole when it had others or is too long."""
    name = re.sub(r"[^A-Za-z0-9.,_=+-]+", "_", text).lstrip(".-_,=+") or "run"
    if name == text and len(name) <= most:
        return name
    return f"{name[: most - 9].rstrip('._,=')}-{hashlib.sha1(text.encode()).hexdigest()[:8]}"
