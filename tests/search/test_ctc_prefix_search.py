"""Time-synchronous CTC search against enumeration of all paths and against a slow search with dictionaries."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from returnn_hydra.search.ctc_prefix_search import CTCPrefixSearch
from returnn_hydra.search.lexicon import Lexicon
from returnn_hydra.search.ngram import ArpaModel, NgramScorer
from returnn_hydra.search.result import NOTHING
from returnn_hydra.search.scorer import CombinedScorer, Encoded
from returnn_hydra.search.step_scorer import LanguageModelScorer

C, BLANK = 4, 3
Prefix = tuple[int, ...]


def exact_scores(toy: SimpleNamespace, table: torch.Tensor) -> dict[Prefix, float]:
    """Log probability of every label sequence: the sum over its paths."""
    sums: dict[Prefix, list[float]] = {}
    for path in itertools.product(range(table.shape[1]), repeat=len(table)):
        score = sum(float(table[t, c]) for t, c in enumerate(path))
        sums.setdefault(toy.collapse(path, BLANK), []).append(score)
    return {labels: toy.log_sum(scores) for labels, scores in sums.items()}


@pytest.fixture(params=["none", "lstm", "ngram", "both"])
def lm(request: pytest.FixtureRequest, toy: SimpleNamespace) -> object:
    """A language model over the labels 0, 1, 2, with the blank's number as begin and end of sequence."""
    torch.manual_seed(4)
    neural = LanguageModelScorer(toy.LanguageModel(C), C)
    words = {"a": -1.0, "b": -1.5, "c": -2.0, "</s>": -0.8}
    pairs = {("<s>",): {"a": -0.3}, ("a",): {"b": -0.2, "</s>": -0.4}, ("a", "b"): {"c": -0.1}}
    ngram = NgramScorer(
        ArpaModel(3, {(): words, **pairs}, {("a",): -0.7, ("a", "b"): -0.5}), ["a", "b", "c", "#"], 3, 3
    )
    both = CombinedScorer({"lstm": neural, "ngram": ngram}, {"lstm": 0.4, "ngram": 0.8})
    return {"none": None, "lstm": neural, "ngram": ngram, "both": both}[request.param]


def lm_score(toy: SimpleNamespace, lm: object) -> Callable[[Prefix], float]:
    one = Encoded(torch.tensor([1]))
    return lambda labels: 0.0 if lm is None else toy.sequence_score(lm, one, list(labels), BLANK)


@pytest.mark.parametrize("with_eos", [False, True])
def test_wide_beam_finds_the_true_best(toy: SimpleNamespace, lm: object, with_eos: bool) -> None:
    encoded = toy.encoded(3, 5, C, seed=1)
    search = CTCPrefixSearch(
        blank=BLANK,
        beam_size=400,
        num_best=20,
        ctc_scale=0.9,
        lm=lm,
        lm_scale=0.6,
        lm_bos=BLANK,
        lm_eos=BLANK if with_eos else None,
        label_reward=0.2,
    )
    score = lm_score(toy, lm)
    for seq, found in enumerate(search(encoded)):
        exact = exact_scores(toy, encoded.ctc_log_probs[seq, : int(encoded.lengths[seq])])
        end = (BLANK,) if with_eos else ()
        total = {g: 0.9 * p + 0.6 * score(g + end) + 0.2 * len(g) for g, p in exact.items()}
        best = sorted(total, key=lambda labels: -total[labels])[:20]
        assert [tuple(hyp.labels) for hyp in found] == best
        assert [hyp.score for hyp in found] == pytest.approx([total[labels] for labels in best], abs=1e-5)


def slow_search(toy: SimpleNamespace, table: torch.Tensor, score: Callable[[Prefix], float], beam_size: int) -> list:
    """Hannun's algorithm with dictionaries; ties are not looked after."""
    beam: dict[Prefix, tuple[float, float]] = {(): (0.0, -math.inf)}
    for row in table.tolist():
        grown: dict[Prefix, list[list[float]]] = {}
        for prefix, (blank, label) in beam.items():
            both = toy.log_sum([blank, label])
            ends = grown.setdefault(prefix, [[], []])
            ends[0].append(both + row[BLANK])
            if prefix:
                ends[1].append(label + row[prefix[-1]])
            for c in range(C):
                if c != BLANK:
                    enter = blank if prefix and c == prefix[-1] else both
                    grown.setdefault((*prefix, c), [[], []])[1].append(enter + row[c])
        sums = {g: (toy.log_sum(b or [-math.inf]), toy.log_sum(n or [-math.inf])) for g, (b, n) in grown.items()}
        ranked = sorted(sums, key=lambda g: -(toy.log_sum(list(sums[g])) + score(g)))
        beam = {g: sums[g] for g in ranked[:beam_size] if max(sums[g]) > -math.inf}
    return sorted(((toy.log_sum(list(ends)) + score(g), g) for g, ends in beam.items()), reverse=True)


@pytest.mark.parametrize("beam_size", [1, 2, 3, 8])
def test_finite_beam_equals_the_slow_search(toy: SimpleNamespace, lm: object, beam_size: int) -> None:
    encoded = toy.encoded(3, 9, C, seed=beam_size)
    search = CTCPrefixSearch(
        blank=BLANK, beam_size=beam_size, num_best=beam_size, lm=lm, lm_scale=0.5, lm_bos=BLANK, label_reward=-0.1
    )
    score = lm_score(toy, lm)
    for seq, found in enumerate(search(encoded)):
        table = encoded.ctc_log_probs[seq, : int(encoded.lengths[seq])]
        expected = slow_search(toy, table, lambda g: 0.5 * score(g) - 0.1 * len(g), beam_size)
        assert [tuple(hyp.labels) for hyp in found] == [labels for _, labels in expected]
        assert [hyp.score for hyp in found] == pytest.approx([total for total, _ in expected], abs=1e-5)


def test_result_does_not_depend_on_the_batch(toy: SimpleNamespace, lm: object) -> None:
    encoded = toy.encoded(5, 14, C, seed=3)
    search = CTCPrefixSearch(blank=BLANK, beam_size=4, num_best=4, lm=lm, lm_bos=BLANK, lm_eos=BLANK)
    whole = search(encoded)
    order = [2, 4, 0, 3, 1]
    shuffled = search(toy.part(encoded, order, extra_frames=2))
    for seq in range(5):
        alone = search(toy.part(encoded, [seq], cut=True))[0]
        for other in (alone, shuffled[order.index(seq)]):
            assert [hyp.labels for hyp in other] == [hyp.labels for hyp in whole[seq]]
            assert [hyp.score for hyp in other] == pytest.approx([hyp.score for hyp in whole[seq]], abs=1e-6)


def test_equal_scores_are_broken_by_the_documented_order(toy: SimpleNamespace) -> None:
    flat = torch.full((2, 6, C), -math.log(C))
    found = CTCPrefixSearch(blank=BLANK, beam_size=3, num_best=3)(Encoded(torch.tensor([6, 6]), None, flat))
    assert found[0] == found[1]


WORDS = [("ab", [0, 1]), ("a", [0]), ("ba", [1, 0]), ("AB", [0, 1]), ("aa", [0, 0])]


def spell(words: tuple[int, ...], lexicon: Lexicon, spellings: list, separator: int | None) -> list[Prefix]:
    """Every way to spell a sequence of words."""
    choices = [[s for w, s in spellings if w == lexicon.words[word]] for word in words]
    out = []
    for parts in itertools.product(*choices):
        labels: list[int] = []
        for i, part in enumerate(parts):
            labels += ([separator] if i and separator is not None else []) + list(part)
        out.append(tuple(labels))
    return out


@pytest.mark.parametrize("separator", [None, 2])
@pytest.mark.parametrize("unit", ["label", "word"])
def test_lexicon_search_finds_the_best_words(toy: SimpleNamespace, separator: int | None, unit: str) -> None:
    lexicon = Lexicon.build(WORDS, separator)
    assert lexicon.words == ["ab", "a", "ba", "AB", "aa"]
    size = C if unit == "label" else 6
    bos = size - 1
    torch.manual_seed(1)
    lm = LanguageModelScorer(toy.LanguageModel(size), size)
    encoded = toy.encoded(2, 5, C, seed=7)
    search = CTCPrefixSearch(
        blank=BLANK,
        beam_size=600,
        num_best=8,
        lm=lm,
        lm_scale=0.7,
        lm_bos=bos,
        lm_eos=bos,
        lm_unit=unit,
        label_reward=0.3,
        lexicon=lexicon,
    )
    one = Encoded(torch.tensor([1]))
    for seq, found in enumerate(search(encoded)):
        exact = exact_scores(toy, encoded.ctc_log_probs[seq, : int(encoded.lengths[seq])])
        total: dict[tuple[Prefix, tuple[int, ...]], float] = {}
        for count in range(4):
            for words in itertools.product(range(5), repeat=count):
                for labels in spell(words, lexicon, WORDS, separator):
                    # a separator behind the last word counts as part of the words, too
                    for ending in (labels, (*labels, 2)) if separator == 2 and words else (labels,):
                        if ending in exact:
                            tokens = list(ending if unit == "label" else words)
                            bonus = 0.7 * toy.sequence_score(lm, one, [*tokens, bos], bos) + 0.3 * len(tokens)
                            total[ending, words] = exact[ending] + bonus
        best = sorted(total, key=lambda key: -total[key])[:8]
        assert [hyp.score for hyp in found] == pytest.approx([total[key] for key in best], abs=1e-5)
        for hyp in found:  # homographs have equal scores without a word LM: any order
            assert hyp.score == pytest.approx(total[tuple(hyp.labels), tuple(hyp.words)], abs=1e-5)


def test_no_word_fits(toy: SimpleNamespace) -> None:
    table = torch.full((1, 2, C), -math.inf)
    table[:, :, 1] = 0.0
    found = CTCPrefixSearch(blank=BLANK, lexicon=Lexicon.build([("a", [0])]))(Encoded(torch.tensor([2]), None, table))
    assert found == [[NOTHING]]


def test_lexicon_file(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text("READ  R EH D\nREAD(2)  R IY D\n\nRED R EH D\n")
    ids = {"R": 0, "EH": 1, "IY": 2, "D": 3}
    lexicon = Lexicon.read(path, ids)
    assert lexicon.words == ["READ", "RED"]
    root = {(int(label), int(lexicon.emits[0, i])) for i, label in enumerate(lexicon.labels[0]) if label >= 0}
    assert root == {(0, -1)}
    assert sorted(lexicon.emits[lexicon.emits >= 0].tolist()) == [0, 0, 1]
    path.write_text("READ R EH D\nBED B EH D\n")
    with pytest.raises(ValueError, match=r"line 2: label 'B' is not in the vocabulary \(word 'BED'\)"):
        Lexicon.read(path, ids)
    with pytest.raises(ValueError, match=r"word 'x' is spelled \[0, 2\]"):
        Lexicon.build([("x", [0, 2])], separator=2)


def test_errors_teach(toy: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="lm_unit=word needs a lexicon"):
        CTCPrefixSearch(lm_unit="word")
    with pytest.raises(ValueError, match="num_best=20 must be at least 1 and at most beam_size=16"):
        CTCPrefixSearch(num_best=20)
    lm = LanguageModelScorer(toy.LanguageModel(C), C)
    with pytest.raises(ValueError, match="lm_bos"):
        CTCPrefixSearch(lm=lm)
    small = LanguageModelScorer(toy.LanguageModel(2), 2)
    with pytest.raises(ValueError, match="the language model has 2 labels, and does not know 2"):
        CTCPrefixSearch(lm=small, lm_bos=1)(toy.encoded(1, 3, C))
    table = torch.zeros(2, 3, C)
    table[1, 2, 0] = np.nan
    with pytest.raises(ValueError, match="sequence 1 of the batch hold NaN"):
        CTCPrefixSearch()(Encoded(torch.tensor([3, 3]), None, table))
    assert CTCPrefixSearch()(Encoded(torch.tensor([3, 2]), None, table))  # NaN in the padding does not matter


tables = st.lists(
    st.lists(st.floats(-6, 0) | st.just(-math.inf), min_size=C, max_size=C).filter(lambda row: max(row) > -math.inf),
    min_size=0,
    max_size=7,
)


@settings(derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(tables, min_size=1, max_size=3), st.integers(1, 6))
def test_impossible_classes_and_empty_sequences(toy: SimpleNamespace, batch: list, beam_size: int) -> None:
    lengths = torch.tensor([len(table) for table in batch])
    rows = [torch.tensor(table, dtype=torch.double).view(-1, C) for table in batch]
    encoded = Encoded(lengths, None, torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=math.nan))
    for found, table in zip(CTCPrefixSearch(blank=BLANK, beam_size=beam_size)(encoded), rows, strict=True):
        expected = slow_search(toy, table, lambda labels: 0.0, beam_size)
        assert found[0].score == pytest.approx(expected[0][0], abs=1e-9) if expected else found == [NOTHING]
