"""What was tried and how it ended: one row per kind of fault, for the table that the tests print."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from faulttools.enumeration import Report

ROW = "row of the table of faults"


class Different(AssertionError):
    """A run went on after the fault, but its end is not that of the undisturbed run."""


class Tally:
    """Counts cases of one kind of fault; a case that fails does not keep the others from being tried."""

    def __init__(self, fault: str, record: Callable[[str, object], None]) -> None:
        """
        Args:
            record: pytest's `record_property`, which gets the row.
        """
        self.fault = fault
        self._record = record
        self.tried = self.survived = self.identical = 0
        self.failures: list[str] = []

    def add(self, case: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Run a case; it raises AssertionError when the run did not survive, Different when it ended differently."""
        self.tried += 1
        try:
            result = case(*arguments, **named)
        except AssertionError as error:
            self.failures.append(f"{arguments} {named}: {error}")
            self.survived += isinstance(error, Different)
            return None
        self.survived += 1
        self.identical += 1
        return result

    def add_report(self, report: Report) -> None:
        """What a check on the simulated disk counted."""
        good = report.tried - len(report.violations)
        self.tried += report.tried
        self.survived += good
        self.identical += good
        self.failures += report.violations

    def close(self) -> None:
        """Write the row, and fail if a case did."""
        self._record(ROW, [self.fault, self.tried, self.survived, self.identical])
        assert self.tried > 0
        assert not self.failures, self.failures[:5]
