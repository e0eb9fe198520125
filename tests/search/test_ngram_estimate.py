"""Kneser-Ney estimates against the formula written out, and as distributions."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn_hydra.search.ngram import read_arpa
from returnn_hydra.search.ngram_estimate import estimate_ngrams, write_arpa

sentences = st.lists(st.lists(st.sampled_from("abc"), max_size=6), min_size=1, max_size=6)


@settings(max_examples=40)
@given(sentences, st.integers(1, 4))
def test_probabilities_sum_to_one(text: list[list[str]], order: int) -> None:
    model = estimate_ngrams(text, order)
    words = sorted({word for sentence in text for word in sentence} | {"</s>"})
    rng = random.Random(0)
    contexts = [
        (),
        ("<s>",),
        *(tuple(["<s>", *rng.choices("abc", k=n)][-n - rng.randint(0, 1) :]) for n in (1, 2, 3, 4)),
    ]
    for context in contexts:
        known = tuple(word for word in context if word in words or word == "<s>")
        assert sum(math.exp(model.log_prob(word, known)) for word in words) == pytest.approx(1.0, abs=1e-9)


def test_bigrams_by_hand() -> None:
    """ "a b", "a c", "b": bigrams <s>a 2, ab 1, b</s> 2, ac 1, c</s> 1, <s>b 1; words before a 1, b 2, c 1, </s> 2."""
    model = estimate_ngrams([["a", "b"], ["a", "c"], ["b"]], 2)
    low = 2 / (2 + 2 * 2)  # n1 = 2 (a, c), n2 = 2 (b, </s>)
    unigram = {w: (n - low) / 6 + low * 4 / 6 / 4 for w, n in {"a": 1, "b": 2, "c": 1, "</s>": 2}.items()}
    high = 4 / (4 + 2 * 2)  # n1 = 4, n2 = 2
    for word, prob in unigram.items():
        assert math.exp(model.log_prob(word, ())) == pytest.approx(prob)
    assert math.exp(model.log_prob("b", ("a",))) == pytest.approx((1 - high) / 2 + high * 2 / 2 * unigram["b"])
    assert math.exp(model.log_prob("a", ("<s>",))) == pytest.approx((2 - high) / 3 + high * 2 / 3 * unigram["a"])
    assert math.exp(model.log_prob("c", ("<s>",))) == pytest.approx(high * 2 / 3 * unigram["c"])


def test_more_context_fits_the_text_better() -> None:
    rng = random.Random(1)
    text = [["a", "b", "c", "a", "b", "d"][: rng.randint(2, 6)] for _ in range(50)]
    fits = []
    for order in (1, 2, 3):
        model = estimate_ngrams(text, order)
        words = [["<s>", *sentence, "</s>"] for sentence in text]
        fits.append(sum(model.log_prob(s[i], tuple(s[:i])) for s in words for i in range(1, len(s))))
    assert fits[0] < fits[1] < fits[2]


@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
def test_file_and_back(tmp_path: Path, name: str) -> None:
    model = estimate_ngrams([["a", "b", "a"], ["b", "c"], ["a"]], 3)
    write_arpa(model, tmp_path / name)
    read = read_arpa(tmp_path / name)
    assert read.order == 3
    for context in [(), ("<s>",), ("a",), ("a", "b"), ("<s>", "a"), ("c", "c")]:
        for word in ("a", "b", "c", "</s>"):
            assert read.log_prob(word, context) == pytest.approx(model.log_prob(word, context), abs=1e-5)


def test_errors_teach() -> None:
    with pytest.raises(ValueError, match="no sentences"):
        estimate_ngrams([], 2)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        estimate_ngrams([["a"]], 0)
    with pytest.raises(ValueError, match=r"'</s>' can't be a word of an n-gram model, in the sentence 'a </s>'"):
        estimate_ngrams([["a", "</s>"]], 2)
    with pytest.raises(ValueError, match="' ' can't be a word"):
        estimate_ngrams([["a", " "]], 2)
