"""Search results as text: RETURNN's py and txt files, JSON lines, and CTM."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from returnn_hydra.search.result import Hypothesis
from returnn_hydra.usage import UsageError

IMPOSSIBLE = -1e30
"""Stands for a score of minus infinity in files, as in RETURNN."""


class LabelNames(Protocol):
    """What is needed of a vocabulary."""

    def to_labels(self, ids: Iterable[int]) -> list[str]:
        """The names of labels."""

    def label_string(self, ids: Iterable[int]) -> str:
        """The labels as RETURNN writes them into search files."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the labels."""


def returnn_value(hypotheses: Sequence[Hypothesis], vocab: LabelNames | None, num_best: bool) -> Any:
    """What RETURNN's search files hold for a sequence.

    The best hypothesis as text, or, with `num_best`, (score, text) of all, best first. Without vocabulary a list of
    label ids is in the place of the text. Scores are plain floats, and finite (-1e30 for impossible), so that
    ast.literal_eval reads them.
    """
    texts = [hyp.labels if vocab is None else vocab.label_string(hyp.labels) for hyp in hypotheses]
    if not num_best:
        return texts[0]
    return [(float(max(hyp.score, IMPOSSIBLE)), text) for hyp, text in zip(hypotheses, texts, strict=True)]


def jsonl_line(
    seq_tag: str, hypotheses: Sequence[Hypothesis], vocab: LabelNames | None, reference: Sequence[int] | None
) -> str:
    """All that is known about a sequence, as one line of JSON; an impossible score is null."""
    record: dict[str, Any] = {"seq_tag": seq_tag}
    if reference is not None:
        record["reference"] = list(reference) if vocab is None else vocab.decode(reference)
    record["hypotheses"] = [_as_json(hyp, vocab) for hyp in hypotheses]
    return json.dumps(record, ensure_ascii=False)


def _as_json(hyp: Hypothesis, vocab: LabelNames | None) -> dict[str, Any]:
    fields: dict[str, Any] = {"score": None if math.isinf(hyp.score) else hyp.score}
    if vocab is not None:
        fields["text"] = vocab.decode(hyp.labels)
    fields["labels"] = hyp.labels
    return fields | {name: getattr(hyp, name) for name in ("times", "words") if getattr(hyp, name) is not None}


def ctm_lines(
    seq_tag: str, hyp: Hypothesis, vocab: LabelNames, unit: str, frame_shift: float, channel: str = "1"
) -> Iterator[str]:
    """The words of a hypothesis as `seq_tag channel start duration word`, times in seconds.

    Arguments:
        unit: how labels make words; see `words_of`.
        frame_shift: seconds per frame of the times.

    Raises:
        UsageError: the hypothesis has no times.
    """
    if not hyp.labels:
        return
    if hyp.times is None:
        raise UsageError(
            f"sequence {seq_tag}: CTM needs times, and the search gives none: search.with_times=true makes them, but "
            "for a hypothesis (or one in its batch) with more labels than a CTC path has room for"
        )
    for word, (start, end) in words_of(vocab.to_labels(hyp.labels), hyp.times, unit):
        yield f"{seq_tag} {channel} {start * frame_shift:.3f} {(end - start) * frame_shift:.3f} {word}"


WORD_UNITS = ("label", "char", "bpe", "sentencepiece")


def words_of(labels: Sequence[str], times: Sequence[tuple[int, int]], unit: str) -> list[tuple[str, tuple[int, int]]]:
    """Join labels to words, with the first frame and the frame behind the last one of each.

    Arguments:
        unit: "label": each label is a word; "char": white space separates words; "bpe": a label that ends with @@ goes
            on in the next one; "sentencepiece": a label that begins with U+2581 begins a word.

    Raises:
        ValueError: another unit.
    """
    if unit not in WORD_UNITS:
        raise ValueError(f"unit={unit!r} is not one of {', '.join(WORD_UNITS)}")
    words: list[tuple[str, tuple[int, int]]] = []
    begins = True
    for label, (start, end) in zip(labels, times, strict=True):
        begins = begins or unit == "label" or (unit == "sentencepiece" and label.startswith("\u2581"))
        if unit == "char" and not label.strip():
            begins = True
            continue
        text = label.removesuffix("@@") if unit == "bpe" else label
        text = text.removeprefix("\u2581") if unit == "sentencepiece" else text
        if begins:
            words.append((text, (start, end)))
        else:
            before, (first, _) = words[-1]
            words[-1] = (before + text, (first, end))
        begins = unit == "bpe" and not label.endswith("@@")
    return [(word, span) for word, span in words if word]
