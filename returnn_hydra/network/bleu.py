"""BLEU of single sequences, as RETURNN computes it.

Papineni et al., "BLEU: a method for automatic evaluation of machine translation", 2002, section 2; n-gram orders
without a match count as 1 / (2^k m), the k-th of them among m n-grams, so that short sequences do not all score 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

MAX_ORDER = 4


def sentence_bleu(hypothesis: Sequence[int], reference: Sequence[int]) -> float:
    """Between 0 and 1; 1 for equal sequences of at least four labels. An empty hypothesis: 0."""
    if not hypothesis or not reference:
        return 0.0
    logs, without_match = 0.0, 0
    for order in range(1, MAX_ORDER + 1):
        found, wanted = _ngrams(hypothesis, order), _ngrams(reference, order)
        total = sum(found.values())
        if not total:
            continue  # too short for this order: counts as a factor of 1
        matches = sum((found & wanted).values())
        if not matches:
            without_match += 1
        logs += math.log(matches / total if matches else 1.0 / (2.0**without_match * total))
    ratio = len(hypothesis) / len(reference)
    brevity = 1.0 if ratio >= 1.0 else math.exp(1.0 - 1.0 / ratio)
    return brevity * math.exp(logs / MAX_ORDER)


def _ngrams(labels: Sequence[int], order: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(labels[i : i + order]) for i in range(len(labels) - order + 1))
