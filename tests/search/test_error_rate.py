"""Error counts against a plain dynamic programme and against jiwer."""

from __future__ import annotations

import math

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from returnn_hydra.search.error_rate import ErrorCounts, ErrorRate, count_errors

words = st.lists(st.sampled_from("abc"), max_size=7)


def edit_distance(hypothesis: list[str], reference: list[str]) -> int:
    row = list(range(len(hypothesis) + 1))
    for i, wanted in enumerate(reference, 1):
        above, row = row, [i]
        for j, found in enumerate(hypothesis, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (found != wanted)))
    return row[-1]


@given(words, words)
def test_fewest_edits(hypothesis: list[str], reference: list[str]) -> None:
    counts = count_errors(hypothesis, reference)
    assert counts.errors == edit_distance(hypothesis, reference)
    assert counts.reference == len(reference)
    assert counts.insertions - counts.deletions == len(hypothesis) - len(reference)


@given(st.lists(st.tuples(words, words.filter(bool)), min_size=1, max_size=4))
def test_total_rate_is_that_of_jiwer(pairs: list[tuple[list[str], list[str]]]) -> None:
    for unit, expected in (("word", jiwer.wer), ("char", jiwer.cer)):
        rate = ErrorRate(unit)
        for i, (hyp, ref) in enumerate(pairs):
            rate.add(f"seq-{i}", " ".join(hyp), " ".join(ref))
        texts = [[" ".join(ref) for _, ref in pairs], [" ".join(hyp) for hyp, _ in pairs]]
        assert rate.total.rate == pytest.approx(expected(*texts))


def test_kinds_of_errors() -> None:
    assert count_errors("a b x d e".split(), "a b c d".split()) == ErrorCounts(1, 0, 1, 4)
    assert count_errors([1, 3], [1, 2, 3]) == ErrorCounts(0, 1, 0, 3)
    assert count_errors([7], []).rate == math.inf
    assert count_errors([], []).rate == 0.0


def test_report_lists_the_worst_sequences_first() -> None:
    rate = ErrorRate("word")
    rate.add("good", "a b", "a b")
    rate.add("one-of-four", "a b c", "a b c d")
    rate.add("two", "x y", "a b c")
    rate.add("one-of-one", "x", "a")
    assert [sequence.seq_tag for sequence in rate.worst()] == ["two", "one-of-one", "one-of-four"]
    assert len(rate.worst(1)) == 1
    text = rate.report()
    assert text.startswith("WER 50.00 % (5 errors in 10: 3 substitutions, 2 deletions, 0 insertions)")
    assert "sequences with errors: 3 of 4" in text
    assert "  ref: a b c\n  hyp: x y\n" in text
    assert rate.summary() == {
        "unit": "word",
        "rate": 0.5,
        "substitutions": 3,
        "deletions": 2,
        "insertions": 0,
        "reference": 10,
        "num_seqs": 4,
    }


def test_white_space_does_not_count_twice() -> None:
    rate = ErrorRate("char")
    assert rate.add("seq", " a  b ", "a b") == ErrorCounts(0, 0, 0, 3)


def test_wrong_use() -> None:
    with pytest.raises(ValueError, match="'words' is not one of word, char, label"):
        ErrorRate("words")
    with pytest.raises(TypeError, match="WER counts words"):
        ErrorRate("word").add("seq", [1], [1])
    with pytest.raises(TypeError, match="LER counts labels"):
        ErrorRate("label").add("seq", "a", [1])
