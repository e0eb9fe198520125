"""One job: finish the configuration, open the run folder, run the task, record how it ended."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from returnn_hydra.build import Builder
from returnn_hydra.config.compose import Composed, finish, override_key
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.config.experiment import check_experiment
from returnn_hydra.config.run_name import run_name
from returnn_hydra.config.schema import Config
from returnn_hydra.engine.errors import LockedError, StateError, exit_code_of, last_line
from returnn_hydra.engine.rank_failures import explained
from returnn_hydra.engine.ranks import Ranks, started_by_torchrun
from returnn_hydra.engine.status import ending, result_file, write_result
from returnn_hydra.tasks.context import Context
from returnn_hydra.tasks.run_folder import RunFolder
from returnn_hydra.tasks.sweep import Row

FOLLOWER_TIMEOUT = 300.0
"""Seconds to wait for the first rank's process to come up."""
DEFAULT_CHOICES = {"task": "train", "extern_data": "japanese_vowels", "datasets": "japanese_vowels", "model": "blstm"}


@dataclass(frozen=True)
class Job:
    """What Hydra composed, in a form that the first rank can send to the others."""

    composed: dict[str, Any]
    """With interpolations."""
    overrides: list[str]
    choices: dict[str, str | None]
    in_sweep: bool


def run(composed: DictConfig) -> Any:
    """Run one composed configuration; returns what the task returns (a score, for sweepers)."""
    hydra = HydraConfig.get()
    job = Job(
        _plain(composed),
        [str(word) for word in hydra.overrides.task],
        {str(group): choice for group, choice in hydra.runtime.choices.items()},
        hydra.mode == RunMode.MULTIRUN,
    )
    files = [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]
    check_experiment(job.choices, job.overrides, files)
    if started_by_torchrun():
        Ranks.start(composed.distributed_timeout).broadcast(job)
    row = Row(hydra.job.num if job.in_sweep else None, job.overrides)
    row.write()
    try:
        score = _run(job, row)
    except BaseException as error:
        row.write(outcome=f"{ending(error)} {exit_code_of(error)}")
        raise
    row.write(outcome=score)
    return score


def _plain(config: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(config, enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def follow() -> None:
    """All ranks but the first: run the jobs that the first one composes, until it has no more."""
    ranks = Ranks.start(_timeout_in(sys.argv[1:]))
    while (job := ranks.broadcast(None)) is not None:
        _run(job, Row(None, job.overrides))
    ranks.leave()


def _timeout_in(words: list[str]) -> float:
    """The `distributed_timeout` of a command line that this process does not compose."""
    found = [word.partition("=")[2] for word in words if override_key(word) == "distributed_timeout"]
    try:
        return float(found[-1])
    except (ValueError, IndexError):
        return FOLLOWER_TIMEOUT


def dismiss_followers() -> None:
    """The first rank has no more jobs."""
    ranks = Ranks.start(FOLLOWER_TIMEOUT)
    ranks.broadcast(None)
    ranks.leave()


def _run(job: Job, row: Row) -> Any:
    composed = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(job.composed))
    assert isinstance(composed, DictConfig)
    if composed.returnn_config is not None:
        return _run_returnn(job, composed, row)
    config = finish(composed, job.overrides)
    values = config.values
    if values["run"] is not None and values["name"] is None:
        path = Path(values["run"])
    else:
        path = _folder(values, run_name(job.choices, job.overrides, DEFAULT_CHOICES), _is_shared(composed, job))
    folder = RunFolder(path)
    if job.choices.get("task") == "train":
        row.claim(path)
    else:
        row.write(folder=str(path))
    ranks = Ranks.start(config.values["distributed_timeout"])
    builder = Builder(_allowed(config, job.overrides))
    context = Context.create(config, folder, builder, job.overrides, ranks)
    task = builder.build(config.values["task"], "task")
    started = time.monotonic()
    facts: dict[str, Any] = {"task": str(job.choices.get("task"))}
    failure: BaseException | None = None
    with context:
        try:
            with explained():
                facts["score"] = task(context)
        except BaseException as error:
            failure = error
            assert context.log is not None
            context.log.only_to_file(last_line(error), error)
            if job.in_sweep:  # Hydra shows only the first of several failures, and at the end
                print(f"{folder.path}: {last_line(error)}", file=sys.stderr)
            raise
        finally:
            facts["seconds"] = round(time.monotonic() - started, 3)
            if ranks.is_first and not isinstance(failure, LockedError):
                with contextlib.suppress(StateError) if failure else contextlib.nullcontext():
                    write_result(folder.disk, folder.path, failure, facts, result_file(facts["task"]))
    return facts["score"]


def _run_returnn(job: Job, composed: DictConfig, row: Row) -> Any:
    from returnn_hydra.tasks.returnn_job import run_returnn_job  # the frontend takes a second to import

    keys = [override_key(word) for word in job.overrides]
    values = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(values, dict)
    by_key = {str(key): value for key, value in values.items()}
    folder = None
    if composed.name is not None or job.in_sweep:
        files = values["returnn_config"]
        first = Path(files if isinstance(files, str) else files[0])
        own_name = run_name({"experiment": first.stem}, job.overrides, DEFAULT_CHOICES)
        folder = _folder(by_key, own_name, _is_shared(composed, job))
        row.write(folder=str(folder))
    task = job.choices.get("task") if "task" in keys else None
    return run_returnn_job(by_key, job.overrides, task, folder, Ranks.start(composed.distributed_timeout))


def _folder(values: Mapping[str, Any], own_name: str, shared: bool) -> Path:
    """The folder below `outputs`: the one that `name` says, or `own_name`.

    Args:
        own_name: tells the run from others.
        shared: all runs of a sweep have the same `name`, which is then a folder of folders.
    """
    if values["name"] is None:
        return Path(values["outputs"]) / own_name
    return Path(values["outputs"]) / _checked(values["name"]) / (own_name if shared else "")


def _is_shared(composed: DictConfig, job: Job) -> bool:
    return job.in_sweep and not OmegaConf.is_interpolation(composed, "name")


def _checked(name: str) -> str:
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
        raise ConfigError(f"name={name!r}: expected a folder below `outputs`, like an4/baseline")
    return name


def _allowed(config: Composed, overrides: list[str]) -> list[str]:
    """`allow_targets` counts only when it stands on this command line: a saved configuration can't open doors."""
    named = any(word.split("=")[0] == "allow_targets" for word in overrides)
    return list(config.values["allow_targets"]) if named else []
