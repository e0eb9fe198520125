"""A word model over characters: sentences get the word model's score, next labels sum to one, others are ruled out."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from returnn_hydra.search.ngram import END, ArpaModel
from returnn_hydra.search.ngram_estimate import estimate_ngrams, write_arpa
from returnn_hydra.search.scorer import Encoded
from returnn_hydra.search.word_lookahead import WordLookahead

LABELS = ["a", "b", " ", "</s>"]
END_LABEL = 3
ONE = Encoded(torch.tensor([1]))
TEXTS = ["a ab", "ab b a", "b", "ab ab bb", "", "a b bb a"]
WORDS = ["a", "ab", "b", "bb"]


@pytest.fixture(params=[1, 2, 3])
def model(request: pytest.FixtureRequest) -> ArpaModel:
    return estimate_ngrams([text.split() for text in TEXTS], request.param)


def make_scorer(model: ArpaModel | Path) -> WordLookahead:
    return WordLookahead(model, LABELS, " ", bos=END_LABEL, eos=END_LABEL)


def labels_of(text: str) -> list[int]:
    return [LABELS.index(char) for char in text] + [END_LABEL]


def word_score(model: ArpaModel, words: list[str]) -> float:
    history = ["<s>", *words, END]
    return sum(model.log_prob(history[i], tuple(history[:i])) for i in range(1, len(history)))


def test_sentences_have_the_score_of_the_words(model: ArpaModel, toy: SimpleNamespace) -> None:
    scorer = make_scorer(model)
    for size in range(4):
        for words in itertools.product(WORDS, repeat=size):
            found = toy.sequence_score(scorer, ONE, labels_of(" ".join(words)), END_LABEL)
            assert found == pytest.approx(word_score(model, list(words)), abs=1e-4)


def test_the_next_label_has_probability_one(model: ArpaModel) -> None:
    scorer = make_scorer(model)
    for text in ("", "a", "ab", "a ", "ab b", "ab b ", "bb a b"):
        state = scorer.initial_state(ONE)
        for label in [END_LABEL, *labels_of(text)[:-1]]:
            scores, state = scorer.score(torch.tensor([[label]]), state)
        assert scores.exp().sum().item() == pytest.approx(1.0, abs=1e-5), text


@pytest.mark.parametrize("text", ["ba", "a  b", " a", "a ", "abb", "ba a"])
def test_other_spellings_are_impossible(text: str, toy: SimpleNamespace) -> None:
    scorer = make_scorer(estimate_ngrams([text.split() for text in TEXTS], 2))
    assert toy.sequence_score(scorer, ONE, labels_of(text), END_LABEL) == -math.inf


def test_goes_on_without_context_behind_an_unknown_word() -> None:
    model = estimate_ngrams([text.split() for text in TEXTS], 3)
    scorer = make_scorer(model)
    state = scorer.initial_state(ONE)
    for label in [END_LABEL, *labels_of("ba ")[:-1]]:
        scores, state = scorer.score(torch.tensor([[label]]), state)
    total = 1.0 - math.exp(model.log_prob(END, ()))
    expected = sum(math.exp(model.log_prob(word, ())) for word in ("a", "ab")) / total
    assert scores[0, 0, 0].exp().item() == pytest.approx(expected, rel=1e-5)


def test_reads_a_file(tmp_path: Path, toy: SimpleNamespace) -> None:
    model = estimate_ngrams([text.split() for text in TEXTS], 2)
    write_arpa(model, tmp_path / "words.arpa")
    found = toy.sequence_score(make_scorer(tmp_path / "words.arpa"), ONE, labels_of("ab b"), END_LABEL)
    assert found == pytest.approx(word_score(model, ["ab", "b"]), abs=1e-4)


def test_errors_name_the_word_and_the_separator() -> None:
    model = estimate_ngrams([["a", "ac"]], 2)
    with pytest.raises(ValueError, match=r"'ac' .* can't be spelled: 'c' is no label"):
        make_scorer(model)
    with pytest.raises(ValueError, match="separator '_' between words is none of the 4 labels"):
        WordLookahead(model, LABELS, "_", bos=END_LABEL, eos=END_LABEL)
