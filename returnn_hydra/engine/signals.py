"""Stop requests: from signals and from a time limit, read by the trainer at the end of a step."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from returnn_hydra.engine.errors import INTERRUPTED, TERMINATED, Stopped

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def parse_duration(text: str | float) -> float:
    """`23h30m`, `90s`, `1d`, `1.5h`, or a number of seconds -> seconds.

    Raises:
        ValueError: it is none of these.
    """
    word = str(text).strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", word):
        return float(word)
    match = re.fullmatch(r"(?:([\d.]+)d)?(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", word)
    try:
        if word and match:
            return sum(
                float(number) * UNITS[unit] for number, unit in zip(match.groups(), "dhms", strict=True) if number
            )
    except ValueError:
        pass
    raise ValueError(f"stop_after={text}: no duration; expected such as 23h30m, 90m, 1d, or a number of seconds")


class StopRequest:
    """Whether and why the run should end: `if stop.requested: save, then raise stop.stopped("...")`.

    Inside the `with` block the signals set the flag. While `immediate` is true (start-up: nothing to save) the first
    signal raises `Stopped` where the program is. A second signal ends the process at once.
    """

    def __init__(self, stop_after: str | float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deadline = None if stop_after is None else clock() + parse_duration(stop_after)
        self._stop_after = stop_after
        self._signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self.immediate = True

    @property
    def requested(self) -> bool:
        """A signal came, or the time is up."""
        return self._signal is not None or (self._deadline is not None and self._clock() >= self._deadline)

    @property
    def reason(self) -> str:
        if self._signal is None and self._stop_after is None:
            return "another rank was asked to stop"
        return self._signal.name if self._signal else f"stop_after={self._stop_after}"

    @property
    def exit_code(self) -> int:
        return INTERRUPTED if self._signal == signal.SIGINT else TERMINATED

    def stopped(self, what: str) -> Stopped:
        """The exception to raise when the state is saved; `what`: such as `epoch 3, batch 117 of 240 is saved`."""
        return Stopped(
            f"{self.reason}: {what}. Start the same command again to go on", self.exit_code, self._signal is not None
        )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            final = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
            signal.signal(final, signal.SIG_DFL)
            os.kill(os.getpid(), final)
            return
        self._signal = signal.Signals(number)
        if self.immediate:
            raise self._before_the_first_step()

    def _before_the_first_step(self) -> Stopped:
        return self.stopped("before the first step, nothing was to be saved")

    def __enter__(self) -> StopRequest:
        for number in STOP_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP on purpose
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """
        Raises:
            Stopped: the signal's own was lost inside of a library that calls back from C (h5py: a SystemError).
        """
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        lost = isinstance(error, Exception) and not isinstance(error, Stopped)
        if lost and self.immediate and self._signal is not None:
            raise self._before_the_first_step() from error
