"""What a search finds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from returnn_hydra.batch import Output


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


def pack(results: Sequence[Sequence[Hypothesis]], device: torch.device | str = "cpu") -> dict[str, Output]:
    """The results of a batch as outputs of a forward step.

    Legend: B sequences, N most hypotheses of a sequence, L most labels, W most words.

    Returns:
        `hypotheses` (B, N, L) labels, -1 behind the end; `scores` (B, N) float64, NaN where a sequence has fewer
        hypotheses; and where the search knows them `times` (B, N, L, 2) and `words` (B, N, W), with -1 behind the end.
    """
    most = max((len(hyps) for hyps in results), default=1)
    rows = [[*hyps, *[None] * (most - len(hyps))] for hyps in results]
    outputs = {"hypotheses": _padded([[hyp.labels if hyp else [] for hyp in row] for row in rows])}
    outputs["scores"] = torch.tensor(
        [[hyp.score if hyp else math.nan for hyp in row] for row in rows], dtype=torch.double
    )
    every = [hyp for row in rows for hyp in row if hyp and hyp != NOTHING]
    if every and all(hyp.times is not None for hyp in every):
        starts, ends = (
            _padded([[[span[i] for span in hyp.times or []] if hyp else [] for hyp in row] for row in rows])
            for i in (0, 1)
        )
        outputs["times"] = torch.stack([starts, ends], dim=-1)
    if every and all(hyp.words is not None for hyp in every):
        outputs["words"] = _padded([[(hyp.words or []) if hyp else [] for hyp in row] for row in rows])
    return {name: Output(tensor.to(device)) for name, tensor in outputs.items()}


def unpack(outputs: Mapping[str, np.ndarray]) -> list[Hypothesis]:
    """The hypotheses of one sequence out of its part of `pack`'s outputs."""
    hyps = []
    for n, score in enumerate(outputs["scores"].tolist()):
        if math.isnan(score):
            continue
        labels = [label for label in outputs["hypotheses"][n].tolist() if label >= 0]
        times = words = None
        if "times" in outputs:
            times = [(start, end) for start, end in outputs["times"][n].tolist() if start >= 0]
        if "words" in outputs:
            words = [word for word in outputs["words"][n].tolist() if word >= 0]
        hyps.append(Hypothesis(labels, score, times, words))
    return hyps


def _padded(rows: list[list[list[int]]]) -> torch.Tensor:
    """(B, N, longest) int64, -1 behind the end."""
    longest = max((len(labels) for row in rows for labels in row), default=0)
    return torch.tensor([[labels + [-1] * (longest - len(labels)) for labels in row] for row in rows], dtype=torch.long)
