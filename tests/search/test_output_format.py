"""Results as arrays and as text, and back."""

from __future__ import annotations

import ast
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from returnn_hydra.data.vocab import CharacterVocabulary, Vocabulary
from returnn_hydra.search.output_format import ctm_lines, jsonl_line, returnn_value, words_of
from returnn_hydra.search.result import NOTHING, Hypothesis, pack, unpack

label_lists = st.lists(st.integers(0, 9), max_size=5)


@given(st.lists(st.lists(label_lists, min_size=1, max_size=3), min_size=1, max_size=4), st.booleans())
def test_pack_and_unpack(batch: list[list[list[int]]], full: bool) -> None:
    results = [
        [
            Hypothesis(
                labels,
                -1.5 * n,
                [(i, i + 2) for i in range(len(labels))] if full else None,
                labels[:2] if full else None,
            )
            for n, labels in enumerate(hyps)
        ]
        for hyps in batch
    ]
    outputs = {name: output.per_sequence() for name, output in pack(results).items()}
    assert [unpack({name: rows[b] for name, rows in outputs.items()}) for b in range(len(batch))] == results


def test_nothing_survives() -> None:
    outputs = pack([[NOTHING], [Hypothesis([3], -1.0), Hypothesis([], -2.0)]])
    assert unpack({name: output.per_sequence()[0] for name, output in outputs.items()}) == [NOTHING]


@pytest.mark.parametrize("num_best", [False, True])
def test_returnn_values_are_plain_literals(num_best: bool) -> None:
    vocab = Vocabulary(labels=["he@@", "llo", "it's"])
    hyps = [Hypothesis([0, 1], -0.25), Hypothesis([2], -1.0), NOTHING]
    value = returnn_value(hyps, vocab, num_best)
    assert ast.literal_eval(repr(value)) == value
    assert value == ([(-0.25, "he@@ llo"), (-1.0, "it's"), (-1e30, "")] if num_best else "he@@ llo")
    assert returnn_value(hyps, None, False) == [0, 1]


def test_characters_are_joined_without_spaces() -> None:
    assert returnn_value([Hypothesis([0, 2, 1], 0.0)], CharacterVocabulary(labels=["A", "B", " "]), False) == "A B"


def test_jsonl() -> None:
    vocab = Vocabulary(labels=["a", "b"])
    line = jsonl_line("utt", [Hypothesis([1, 0], -1.0, [(0, 2), (2, 3)]), NOTHING], vocab, [0])
    assert json.loads(line) == {
        "seq_tag": "utt",
        "reference": "a",
        "hypotheses": [
            {"score": -1.0, "text": "b a", "labels": [1, 0], "times": [[0, 2], [2, 3]]},
            {"score": None, "text": "", "labels": []},
        ],
    }
    assert "reference" not in json.loads(jsonl_line("utt", [NOTHING], None, None))


@pytest.mark.parametrize(
    ("unit", "labels", "words"),
    [
        ("label", "one two", [("one", (0, 1)), ("two", (2, 3))]),
        ("char", "A B _ C _ _ D", [("AB", (0, 3)), ("C", (6, 7)), ("D", (12, 13))]),
        ("bpe", "he@@ l@@ lo you@@", [("hello", (0, 5)), ("you", (6, 7))]),
        ("sentencepiece", "▁he llo ▁ you", [("hello", (0, 3)), ("you", (4, 7))]),
    ],
)
def test_words_of_labels(unit: str, labels: str, words: list[tuple[str, tuple[int, int]]]) -> None:
    names = [" " if name == "_" else name for name in labels.split()]
    assert words_of(names, [(2 * i, 2 * i + 1) for i in range(len(names))], unit) == words


def test_ctm() -> None:
    vocab = CharacterVocabulary(labels=["A", "B", " "])
    hyp = Hypothesis([0, 1, 2, 1], 0.0, [(0, 10), (12, 20), (20, 22), (25, 31)])
    assert list(ctm_lines("utt-1", hyp, vocab, "char", 0.03)) == ["utt-1 1 0.000 0.600 AB", "utt-1 1 0.750 0.180 B"]
    with pytest.raises(ValueError, match="sequence utt-1: CTM needs times"):
        list(ctm_lines("utt-1", Hypothesis([0], 0.0), vocab, "char", 0.03))
    assert not list(ctm_lines("utt-1", Hypothesis([], 0.0), vocab, "char", 0.03))  # nothing found, nothing to time
    with pytest.raises(ValueError, match="unit='word' is not one of label, char, bpe, sentencepiece"):
        words_of(["a"], [(0, 1)], "word")
    assert math.isinf(NOTHING.score)
