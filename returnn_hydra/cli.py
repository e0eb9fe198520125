"""The command line: Hydra composes, the task runs, every error becomes one short message and an exit code.

Nothing here imports torch, numpy or h5py, so that --help, --cfg and completion answer at once.
"""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
import traceback
from contextlib import nullcontext
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from returnn_hydra.config.flags import flags_first, is_sweep
from returnn_hydra.config.help import help_text, wants_help
from returnn_hydra.config.hydra_errors import explain
from returnn_hydra.config.imports import without_collections
from returnn_hydra.config.paths import config_dir
from returnn_hydra.config.saved_run import with_saved_overrides
from returnn_hydra.config.schema import register
from returnn_hydra.tasks.sweep import table_at_the_end

register()


class JobFailed(BaseException):
    """Takes a job's error past Hydra, which would print a line about it before ours."""

    def __init__(self, error: Exception) -> None:
        self.error = error


@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")
def run_job(composed: DictConfig) -> Any:
    """One job: a whole command, or one of a sweep."""
    with without_collections():
        from returnn_hydra.tasks.job import run

    try:
        return run(composed)
    except Exception as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN and not getattr(error, "by_signal", False):
            raise  # Hydra goes on with the other jobs
        raise JobFailed(error) from None


def main() -> None:
    """Run the command line in sys.argv; exit code 0, or the error's own (README, "Exit codes")."""
    if wants_help(sys.argv[1:]):
        print(help_text(sys.argv[1:]))
        return
    if "--version" in sys.argv[1:]:
        print(f"returnn-hydra {importlib.metadata.version('returnn-hydra')}")
        return
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors on instead of printing them and exiting with 1
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))  # more than one: started by torchrun
    on_stop = _end if num_ranks == 1 else signal.SIG_DFL  # no handler of Python's runs while ranks wait for each other
    before = {number: signal.signal(number, on_stop) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    try:
        if num_ranks > 1:
            _run_as_rank(int(os.environ["RANK"]))
        else:
            _run()
    except Exception as error:
        code = _report(error, wants_traceback)
        if num_ranks > 1:
            from returnn_hydra.engine.errors import NON_FINITE
            from returnn_hydra.engine.rank_failures import until_all_told
            from returnn_hydra.engine.ranks import end_at_once

            if code == NON_FINITE:  # all ranks decide so
                until_all_told()
            end_at_once(code)
        sys.exit(code)
    except KeyboardInterrupt:
        print("ERROR 130: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if not wants_traceback:
            os.environ.pop("HYDRA_FULL_ERROR", None)


def _run() -> None:
    sys.argv[1:] = flags_first(with_saved_overrides(sys.argv[1:]))
    try:
        with table_at_the_end() if is_sweep(sys.argv) else nullcontext():
            run_job()
    except JobFailed as failed:
        raise failed.error from None


def _run_as_rank(rank: int) -> None:
    """One of torchrun's processes: the first one composes for all.

    Raises:
        LostRankError: another one failed, or does not answer.
    """
    from returnn_hydra.engine.rank_failures import explained
    from returnn_hydra.tasks.job import dismiss_followers, follow

    with explained():
        if rank > 0:
            follow()
        else:
            _run()
            dismiss_followers()


def _end(number: int, frame: object) -> None:
    """A stop signal while there is nothing to save: during the imports, or between two jobs."""
    sys.exit(143)


def _report(error: Exception, wants_traceback: bool) -> int:
    """Print the error; returns the exit code."""
    from returnn_hydra.engine.errors import FAILED, exit_code_of, last_line

    config_error = explain(error)
    code = 2 if config_error else exit_code_of(error)
    if wants_traceback or code == FAILED:
        traceback.print_exception(error)
    line = f"ERROR {code}: {config_error}" if config_error else last_line(error)
    rank = os.environ.get("RANK") if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
    print(line if rank is None else f"rank {rank}: {line}", file=sys.stderr)
    return code
