"""What a search finds."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Hypothesis:
    """A label sequence that a search found for one sequence."""

    labels: list[int]
    """Without begin and end of sequence, without blanks."""
    score: float
    """Logarithmic, higher is better; -inf: the search found nothing that is possible."""
    times: list[tuple[int, int]] | None = None
    """First frame, and the frame behind the last one, of every label, where the search knows them."""
    words: list[int] | None = None
    """Index of every word, from a search that is constrained to a lexicon."""


NOTHING = Hypothesis([], -math.inf)
"""The result for a sequence of which no hypothesis is possible under the limits of the search."""
