"""`python run.py returnn_config=my.config task=train ...`: a RETURNN configuration as a Hydra job, sweeps included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from returnn_hydra.config.compose import override_key
from returnn_hydra.config.errors import ConfigError, nearest
from returnn_hydra.engine.ranks import Ranks
from returnn_hydra.tasks.returnn.session import open_session
from returnn_hydra.tasks.returnn_command import run_session

TASKS = {"evaluate": "eval"}
"""Our word to RETURNN's, where they differ."""
SAME = ("num_epochs", "batch_size", "max_seqs", "learning_rate", "device", "log_verbosity", "load_epoch")
RENAMED = {"seed": "random_seed", "compile": "torch_compile"}
OF_THE_JOB = (
    "returnn_config",
    "returnn",
    "experiment",
    "task",
    "name",
    "outputs",
    "allow_targets",
    "distributed_timeout",
)
"""Keys of the command line that are no keys of RETURNN's."""


def run_returnn_job(
    values: Mapping[str, Any], overrides: Sequence[str], task: str | None, folder: Path | None, ranks: Ranks
) -> Any:
    """Run the configuration; returns what its task returns (the best score of a training).

    Args:
        values: our configuration: `returnn_config`, `returnn`, and the keys that stand on the command line.
        overrides: the command line's words; only what stands there counts.
        task: our task, if the command line names one.
        folder: checkpoints and scores go there, in place of the config's own `model`: of a sweep's job, or with name=.

    Raises:
        ConfigError: a key that has no meaning for a RETURNN configuration.
    """
    files = values["returnn_config"]
    keys = dict(values["returnn"])
    if task is not None:
        keys["task"] = TASKS.get(task, task)
    for key in dict.fromkeys(override_key(word) for word in overrides):
        first = key.split(".")[0]
        if key in SAME or key in RENAMED:
            if (key, values[key]) != ("load_epoch", "last"):
                keys[RENAMED.get(key, key)] = values[key]
        elif first not in OF_THE_JOB and not first.startswith("hydra"):
            raise ConfigError(
                f"{key}: with returnn_config=, only {', '.join((*SAME, *RENAMED))} and returnn.KEY=VALUE say something"
                f" (RETURNN's own key: returnn.{key}=...){nearest(key, (*SAME, *RENAMED))}"
            )
    if folder is not None:
        keys["model"] = str(folder / "checkpoints" / "model")
        keys["learning_rate_file"] = str(folder / "learning_rates")
    return run_session(open_session([files] if isinstance(files, str) else list(files), values=keys, ranks=ranks))
