"""Word, character and label error rates, counted over a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from returnn_hydra.extras import require


@dataclass(frozen=True)
class ErrorCounts:
    """Edits that turn references into hypotheses."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference: int = 0
    """Units in the references."""

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.reference + other.reference,
        )

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per unit of the references; of empty references: 0 without errors, else infinite."""
        if self.reference:
            return self.errors / self.reference
        return float("inf") if self.errors else 0.0

    def __str__(self) -> str:
        return (
            f"{100 * self.rate:.2f} % ({self.errors} errors in {self.reference}: {self.substitutions} substitutions, "
            f"{self.deletions} deletions, {self.insertions} insertions)"
        )


@dataclass(frozen=True)
class SequenceErrors:
    """The errors of one sequence."""

    seq_tag: str
    counts: ErrorCounts
    hypothesis: str
    reference: str


def count_errors(hypothesis: Sequence[Any], reference: Sequence[Any]) -> ErrorCounts:
    """The fewest edits (Levenshtein) between two sequences of words, characters or label ids.

    Their number is unique; how they split into substitutions, deletions and insertions may not be, and is then
    rapidfuzz's choice.

    Raises:
        MissingExtra: rapidfuzz is not installed.
    """
    distance = require("rapidfuzz.distance", "search", "an error rate")
    kinds = Counter(edit.tag for edit in distance.Levenshtein.editops(reference, hypothesis))
    return ErrorCounts(kinds["replace"], kinds["delete"], kinds["insert"], len(reference))


UNITS = {"word": "WER", "char": "CER", "label": "LER"}
"""Units of errors, and what their rate is called."""


class ErrorRate:
    """Error counts per sequence and in total.

    Arguments:
        unit: "word" (text split at white space), "char" (all characters of the text, a run of white space as one
            space) or "label" (label ids).

    Raises:
        ValueError: another unit.
    """

    def __init__(self, unit: str = "word") -> None:
        if unit not in UNITS:
            raise ValueError(f"unit={unit!r} is not one of {', '.join(UNITS)}")
        self.unit = unit
        self.sequences: list[SequenceErrors] = []

    @property
    def name(self) -> str:
        return UNITS[self.unit]

    @property
    def total(self) -> ErrorCounts:
        return sum((sequence.counts for sequence in self.sequences), ErrorCounts())

    def add(self, seq_tag: str, hypothesis: str | Sequence[int], reference: str | Sequence[int]) -> ErrorCounts:
        """Count one sequence; text for the units "word" and "char", label ids for "label"."""
        counts = count_errors(self._split(hypothesis), self._split(reference))
        self.sequences.append(SequenceErrors(seq_tag, counts, _shown(hypothesis), _shown(reference)))
        return counts

    def worst(self, count: int = 20) -> list[SequenceErrors]:
        """Sequences with the most errors, of equally many those with the higher rate; without those that have none."""
        wrong = [sequence for sequence in self.sequences if sequence.counts.errors]
        return sorted(wrong, key=lambda sequence: (-sequence.counts.errors, -sequence.counts.rate))[:count]

    def report(self, count: int = 20) -> str:
        """The total, the share of sequences with errors, and the worst sequences, as text."""
        wrong = sum(sequence.counts.errors > 0 for sequence in self.sequences)
        lines = [f"{self.name} {self.total}", f"sequences with errors: {wrong} of {len(self.sequences)}"]
        for sequence in self.worst(count):
            lines += ["", f"{sequence.seq_tag}: {sequence.counts}", f"  ref: {sequence.reference}"]
            lines.append(f"  hyp: {sequence.hypothesis}")
        return "\n".join(lines) + "\n"

    def summary(self) -> dict[str, Any]:
        """Counts and rate as JSON types."""
        total = self.total
        return {"unit": self.unit, "rate": total.rate, **vars(total), "num_seqs": len(self.sequences)}

    def _split(self, text: str | Sequence[int]) -> Sequence[Any]:
        if isinstance(text, str) == (self.unit == "label"):
            raise TypeError(f"{self.name} counts {self.unit}s, and can't be told from {text!r}")
        if not isinstance(text, str):
            return list(text)
        return text.split() if self.unit == "word" else " ".join(text.split())


def _shown(text: str | Sequence[int]) -> str:
    return text if isinstance(text, str) else " ".join(map(str, text))
