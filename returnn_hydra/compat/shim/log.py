"""returnn.log: `print(..., file=log.v3)` goes to Python's logging."""

from __future__ import annotations

import logging


class _Stream:
    """A text stream whose lines become log records."""

    def __init__(self, level: int) -> None:
        self._level = level
        self._line = ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            logging.getLogger("returnn").log(self._level, "%s", line)
        return len(text)

    def flush(self) -> None:
        if self._line:
            logging.getLogger("returnn").log(self._level, "%s", self._line)
            self._line = ""


class Log:
    """Streams v1 (errors) to v5 (details)."""

    def __init__(self) -> None:
        levels = [logging.ERROR, logging.WARNING, logging.INFO, logging.INFO, logging.DEBUG]
        self.v = {number: _Stream(level) for number, level in enumerate(levels, 1)}
        self.v1, self.v2, self.v3, self.v4, self.v5 = self.v.values()
        self.error = self.v1
        self.verbose = [False] * 6

    def write(self, text: str) -> None:
        """A line at level 3."""
        self.v3.write(text + "\n")

    print_warning = print_deprecation_warning = write


log = Log()
