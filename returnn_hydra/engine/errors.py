"""How a run ends: exception classes, each with the exit code that schedulers and people act on."""

from __future__ import annotations

import errno

from returnn_hydra.data.dataset import DataError

OK = 0
FAILED = 1
CONFIG = 2
BAD_DATA = 65
LOST_RANK = 69
NO_RESOURCES = 71
LOCKED = 73
IO_ERROR = 74
NON_FINITE = 76
INTERRUPTED = 130
TERMINATED = 143

MEANING = {
    OK: "done",
    FAILED: "an error that is none of the others",
    CONFIG: "the configuration can't be used",
    BAD_DATA: "the data can't be used",
    LOST_RANK: "another process of the run failed, or does not answer",
    NO_RESOURCES: "out of memory, or another limit of the operating system",
    LOCKED: "another run is live in this folder",
    IO_ERROR: "reading or writing failed",
    NON_FINITE: "NaN or infinity",
    INTERRUPTED: "stopped by SIGINT, the state is saved",
    TERMINATED: "stopped by a signal or by stop_after, the state is saved",
}

OUT_OF_MEMORY_WORDS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "can't start new thread",
    "could not create a primitive",  # oneDNN, which does not say why
    "could not execute a primitive",
)
NOT_MEMORY_WORDS = "primitive descriptor"
"""oneDNN has no such operation for these types of numbers on this processor."""


class RunError(Exception):
    """Base class of the errors below; `str()` is the message for the user."""

    exit_code = FAILED


class ChangedConfigError(RunError):
    """The configuration differs from the one that the checkpoint was made with."""

    exit_code = CONFIG


class CombinationError(RunError):
    """Options that don't go together, which only shows when the run has begun."""

    exit_code = CONFIG


class OutOfMemoryError(RunError):
    """A batch did not fit into memory."""

    exit_code = NO_RESOURCES


class LostRankError(RunError):
    """Another rank of the run failed, was killed, or does not answer."""

    exit_code = LOST_RANK


class LockedError(RunError):
    """Another run is live in the folder."""

    exit_code = LOCKED


class StateError(RunError):
    """The state of a run can't be written or read."""

    exit_code = IO_ERROR


class StateWriteError(StateError):
    """The operating system refused to write; the state that was there before is intact."""


class StateReadError(StateError):
    """The operating system refused to read."""


class DamagedStateError(StateError):
    """A file is not what was once written: damaged, swapped, or from somewhere else."""


class NoCheckpointError(StateError):
    """There is no such checkpoint."""

    exit_code = CONFIG


class UnsafeNameError(RunError):
    """A name of an output file that could leave the run's folder."""

    exit_code = CONFIG


class NonFiniteError(RunError):
    """A loss, a gradient or a parameter is NaN or infinite."""

    exit_code = NON_FINITE

    def __init__(self, message: str, update: int | None = None) -> None:
        super().__init__(message)
        self.update = update
        """Number of the update, if it is not the present one."""


class Stopped(RunError):
    """A signal or the time limit asked for an end, and the state is saved."""

    def __init__(self, message: str, exit_code: int = TERMINATED, by_signal: bool = False) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.by_signal = by_signal
        """Then a whole sweep ends; the time limit is that of one job."""


def exit_code_of(error: BaseException | None) -> int:
    """The exit code for what ended the run; None: it is done."""
    if error is None:
        return OK
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return code
    if isinstance(error, DataError):
        return BAD_DATA
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if is_out_of_memory(error):
        return NO_RESOURCES
    return IO_ERROR if isinstance(error, OSError) else FAILED


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host's or the device's memory, or a limit of the operating system such as threads, ran out."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOMEM, errno.EAGAIN)
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and any(word in text for word in OUT_OF_MEMORY_WORDS)
        and NOT_MEMORY_WORDS not in text
    )


def last_line(error: BaseException) -> str:
    """`ERROR 74: what, where, what to do`: the last line of a failed run's log."""
    code = exit_code_of(error)
    text = " ".join(str(error).split()) or type(error).__name__
    if code == FAILED:
        text = "; ".join([f"{type(error).__name__}: {text}", *getattr(error, "__notes__", ())])
    if code == NO_RESOURCES and not isinstance(error, RunError):
        text = (
            f"out of memory, or at another limit of the system ({text}): batch_size and max_seqs make batches smaller"
        )
    return f"{'STOPPED' if isinstance(error, Stopped) else 'ERROR'} {code}: {text}"
