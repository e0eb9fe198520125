"""RETURNN's command line: `rnn.py FILE... [options] ++key value ...`. Exit codes are those of run.py."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from returnn_hydra.config.command_line import help_text, parse_command_line
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.engine.errors import FAILED, LockedError, StateError, exit_code_of, last_line
from returnn_hydra.engine.files import FileSystem
from returnn_hydra.engine.log import RunLog, hms
from returnn_hydra.engine.rank_failures import explained
from returnn_hydra.engine.ranks import Ranks, end_at_once, started_by_torchrun
from returnn_hydra.engine.status import write_result
from returnn_hydra.tasks.returnn.session import Session, open_session
from returnn_hydra.tasks.returnn.task_table import run_task

TIMEOUT = 1800.0
"""Seconds that a rank waits for the others."""
DEFAULT_VERBOSITY = 3
logger = logging.getLogger(__name__)


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, or the error's code."""
    try:
        with explained():
            run_words(sys.argv[1:] if words is None else words)
            if started_by_torchrun():
                Ranks.start(TIMEOUT).leave()
    except Exception as error:
        code = report(error)
        if started_by_torchrun():
            end_at_once(code)
        sys.exit(code)
    except KeyboardInterrupt:
        print("ERROR 130: interrupted", file=sys.stderr)
        sys.exit(130)


def report(error: Exception) -> int:
    """Print the error; returns the exit code."""
    code = exit_code_of(error)
    if code == FAILED or os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0"):
        traceback.print_exception(error)
    print(f"ERROR {code}: {error}" if isinstance(error, ConfigError) else last_line(error), file=sys.stderr)
    return code


def run_words(words: Sequence[str]) -> Any:
    """Run one command; returns what its task returns.

    Raises:
        ConfigError: the words or the configuration are wrong.
    """
    line = parse_command_line(words)
    if line.show_version:
        print(f"returnn-hydra {importlib.metadata.version('returnn-hydra')}")
        return None
    if line.show_help:
        print(help_text())
        return None
    if not line.files:
        raise ConfigError("command line: no configuration file; expected: FILE ... [options] [++key value] ...")
    return run_session(open_session(line.files, line.overrides, ranks=Ranks.start(TIMEOUT)))


def run_session(session: Session) -> Any:
    """Run the task of a session, with its log; the outcome is recorded beside the checkpoints."""
    started = time.monotonic()
    with run_log(session):
        for line in session.report.warnings:
            logger.warning("%s", line)
        for line in session.report.notes:
            logger.info("%s", line)
        if session.is_network:
            logger.info("The network dict runs on PyTorch")
        failure: BaseException | None = None
        result = None
        try:
            result = run_task(session)
            logger.info("elapsed: %s", hms(time.monotonic() - started))
            return result
        except BaseException as error:
            failure = error
            logging.getLogger("returnn_hydra.error").debug("failed", exc_info=error)
            raise
        finally:
            seconds = round(time.monotonic() - started, 3)
            _record(session, failure, {"task": session.values.get("task", "train"), "seconds": seconds})


def _record(session: Session, failure: BaseException | None, facts: dict[str, Any]) -> None:
    training = session.values.get("task", "train") == "train"
    if not training or session.prefix is None or not session.ranks.is_first or isinstance(failure, LockedError):
        return
    if session.folder.is_dir():
        with contextlib.suppress(StateError) if failure else contextlib.nullcontext():
            write_result(FileSystem(), session.folder, failure, facts)


@contextlib.contextmanager
def run_log(session: Session) -> Iterator[None]:
    """`log` and `log_verbosity`: the terminal where `stdout` is named or nothing is, and files."""
    wanted = session.values.get("log") or ["stdout"]
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    verbosity = session.values.get("log_verbosity", DEFAULT_VERBOSITY)
    level = max(verbosity) if isinstance(verbosity, list | tuple) else verbosity
    for name in names:
        if name.startswith("|"):
            raise ConfigError(f"log={name!r}: logs to programs are not supported; write to a file, or to stdout")
    files = [Path(time.strftime(name.replace("$date", "%Y-%m-%d-%H-%M-%S"))) for name in names if name != "stdout"]
    if session.ranks.size > 1:
        files = [
            path.with_name(f"{path.name}.torch-distrib-{session.ranks.rank}-{session.ranks.size}") for path in files
        ]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
    terminal = "stdout" in names and session.ranks.is_first
    with contextlib.ExitStack() as stack:
        for index, file in enumerate(files or [None]):
            log = RunLog(level, file, terminal=terminal and index == 0)
            stack.callback(log.close)
        yield
