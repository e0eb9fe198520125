"""The run's log: the same lines on the terminal and in run.log, by verbosity.

Verbosity 1: errors and epoch results; 2: data, device, warnings; 3: what happens (default); 4: files; 5: every batch.
"""

from __future__ import annotations

import logging
from pathlib import Path

LEVEL_OF_VERBOSITY = {
    0: logging.CRITICAL,
    1: logging.ERROR,
    2: logging.WARNING,
    3: logging.INFO,
    4: 15,
    5: logging.DEBUG,
}
RESULTS = LEVEL_OF_VERBOSITY[1]
SUMMARY = LEVEL_OF_VERBOSITY[2]
FILES = LEVEL_OF_VERBOSITY[4]
BATCHES = LEVEL_OF_VERBOSITY[5]


class RunLog:
    """Sends the program's log lines to the terminal and to a file, from `start` to `close`."""

    def __init__(self, verbosity: int, file: Path | None, terminal: bool = True) -> None:
        self._logger = logging.getLogger("returnn_hydra")
        self._logger.setLevel(LEVEL_OF_VERBOSITY.get(verbosity, logging.DEBUG))
        self._logger.propagate = False
        self._handlers: list[logging.Handler] = [TerminalHandler() if terminal else logging.NullHandler()]
        if file is not None:
            to_file = logging.FileHandler(file)
            to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
            self._handlers.append(to_file)
        self._to_file = to_file if file is not None else None
        for handler in self._handlers:
            self._logger.addHandler(handler)

    def only_to_file(self, message: str, error: BaseException | None) -> None:
        """A line, and the error's traceback, that the terminal does not show."""
        if self._to_file is not None:
            info = None if error is None else (type(error), error, error.__traceback__)
            self._to_file.handle(logging.LogRecord("returnn_hydra", logging.ERROR, "", 0, message, None, info))

    def close(self) -> None:
        for handler in self._handlers:
            self._logger.removeHandler(handler)
            handler.close()


class TerminalHandler(logging.Handler):
    """Writes through rich, so that lines and a progress bar do not disturb each other."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console

        self.console = Console(soft_wrap=True, highlight=False, markup=False)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.console.print(self.format(record))
        except Exception:
            self.handleError(record)


def hms(seconds: float) -> str:
    """`H:MM:SS`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
