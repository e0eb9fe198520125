"""ARPA files and backoff scores against values worked out by hand."""

from __future__ import annotations

import gzip
import itertools
import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from returnn_hydra.search.ngram import NgramScorer, read_arpa
from returnn_hydra.search.ngram_estimate import estimate_ngrams
from returnn_hydra.search.scorer import Encoded

ARPA = """
\\data\\
ngram 1=5
ngram 2=4
ngram 3=2

\\1-grams:
-99\t<s>\t-0.3
-0.7\t</s>
-0.4\ta\t-0.2
-0.6\tb\t-0.1
-1.2\t<unk>

\\2-grams:
-0.25\t<s> a\t-0.15
-0.5\ta b\t-0.05
-0.9\tb a
-0.35\tb </s>

\\3-grams:
-0.1\t<s> a b
-0.2\ta b </s>

\\end\\
"""
LABELS = ["#", "a", "b", "c"]


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA)
    return path


@pytest.mark.parametrize(
    ("word", "context", "log10"),
    [
        ("a", (), -0.4),
        ("a", ("<s>",), -0.25),
        ("b", ("<s>",), -0.3 - 0.6),
        ("b", ("<s>", "a"), -0.1),
        ("a", ("<s>", "a"), -0.15 - 0.2 - 0.4),
        ("</s>", ("<s>", "a"), -0.15 - 0.2 - 0.7),
        ("</s>", ("a", "b"), -0.2),
        ("</s>", ("b", "b"), -0.35),
        ("a", ("a", "b"), -0.05 - 0.9),
        ("b", ("a", "a", "a", "b"), -0.05 - 0.1 - 0.6),
    ],
)
def test_backoff_by_hand(arpa: Path, word: str, context: tuple[str, ...], log10: float) -> None:
    assert read_arpa(arpa).log_prob(word, context) == pytest.approx(log10 * math.log(10))


def test_scorer_follows_the_model(arpa: Path, toy: SimpleNamespace) -> None:
    model = read_arpa(arpa)
    scorer = NgramScorer(model, LABELS, bos=0, eos=0)
    names = {1: "a", 2: "b", 3: "<unk>"}
    for seq in toy.all_label_sequences([1, 2, 3], 4):
        words = ["<s>", *(names[label] for label in seq), "</s>"]
        expected = sum(model.log_prob(word, tuple(words[:i])) for i, word in enumerate(words) if i)
        assert toy.sequence_score(scorer, Encoded(torch.tensor([1])), [*seq, 0], 0) == pytest.approx(expected, rel=1e-5)


def test_rows_of_hypotheses_are_independent(arpa: Path) -> None:
    scorer = NgramScorer(arpa, LABELS, bos=0, eos=0)
    state = scorer.initial_state(Encoded(torch.tensor([5, 5])))
    first, state = scorer.score(torch.zeros(2, 1, dtype=torch.long), state)
    assert torch.equal(first[0], first[1])
    state = scorer.select(state, torch.zeros(2, 2, dtype=torch.long))
    _, state = scorer.score(torch.tensor([[1, 2], [2, 3]]), state)
    kept = scorer.keep(scorer.select(state, torch.tensor([[1, 0], [1, 1]])), torch.tensor([1, 0]))
    joined = scorer.concat([kept, scorer.keep(state, torch.tensor([0]))])
    last, _ = scorer.score(torch.tensor([[1, 2], [2, 1], [1, 1]]), joined)
    histories = [[3, 1], [3, 2], [2, 2], [1, 1], [1, 1], [2, 1]]
    for row, history in zip(last.flatten(0, 1), histories, strict=True):
        alone = scorer.initial_state(Encoded(torch.tensor([5])))
        for label in [0, *history]:
            expected, alone = scorer.score(torch.tensor([[label]]), alone)
        assert torch.equal(row, expected[0, 0])


def test_packed_file(arpa: Path, tmp_path: Path) -> None:
    packed = tmp_path / "lm.arpa.gz"
    packed.write_bytes(gzip.compress(ARPA.encode()))
    assert read_arpa(packed) == read_arpa(arpa)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ngram 2=4", "ngram 2=5", "announces 5 2-grams, but there are 4"),
        ("-0.9\tb a", "-0.9\tb", "line 17: expected 2 words"),
        ("-0.9\tb a", "x\tb a", "line 17: 'x.*' does not hold a log probability"),
        ("\\end\\", "", "no .end"),
        ("\\data\\\nngram 1=5\nngram 2=4\nngram 3=2", "", "not an ARPA file"),
    ],
)
def test_broken_files(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "broken.arpa"
    path.write_text(ARPA.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_arpa(path)


def test_label_without_unigram(tmp_path: Path) -> None:
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA.replace("-1.2\t<unk>\n", "").replace("ngram 1=5", "ngram 1=4"))
    with pytest.raises(ValueError, match=r"no <unk>, and no unigram for 1 of 4 labels, e\.g\. 'c'"):
        NgramScorer(path, LABELS, bos=0, eos=0)


def test_probabilities_of_a_bigram_model_sum_to_one(tmp_path: Path) -> None:
    """With backoff weights that leave what the listed bigrams leave."""
    unigrams = {"</s>": 0.2, "a": 0.5, "b": 0.3}
    listed = {("a", "b"): 0.6, ("b", "</s>"): 0.7, ("<s>", "a"): 0.8}
    lines = ["\\data\\", "ngram 1=4", "ngram 2=3", "\\1-grams:"]
    for word in ("<s>", *unigrams):
        used = [(p, unigrams[w]) for (c, w), p in listed.items() if c == word]
        weight = (1 - sum(p for p, _ in used)) / (1 - sum(u for _, u in used))
        lines.append(f"{math.log10(unigrams.get(word, 1e-99))} {word} {math.log10(weight)}")
    lines += ["\\2-grams:", *(f"{math.log10(p)} {c} {w}" for (c, w), p in listed.items()), "\\end\\"]
    (tmp_path / "lm.arpa").write_text("\n".join(lines))
    scorer = NgramScorer(tmp_path / "lm.arpa", ["#", "a", "b"], bos=0, eos=0)
    state = scorer.initial_state(Encoded(torch.tensor([1])))
    for label in itertools.chain([0], [1, 2, 2, 1, 1]):
        row, state = scorer.score(torch.tensor([[label]]), state)
        assert float(row.logsumexp(-1)) == pytest.approx(0.0, abs=1e-6)


def test_rows_are_filled_inside_and_outside_of_inference_mode(arpa: Path) -> None:
    with torch.inference_mode():
        scorer = NgramScorer(arpa, LABELS, bos=0, eos=0)
    state = scorer.initial_state(Encoded(torch.tensor([1])))
    for label in (0, 1, 2):
        row, state = scorer.score(torch.tensor([[label]]), state)
        assert not row.is_inference()


def test_more_contexts_than_there_was_room_for() -> None:
    """Rows of shorter contexts are added while that of a longer one is; they are those of scorers that have room."""
    words = [chr(ord("a") + i) for i in range(26)]
    rng = random.Random(1)
    sentences = [rng.choices(words, k=6) for _ in range(60)]
    model = estimate_ngrams(sentences, 4)
    labels = ["#", *words]
    scorer = NgramScorer(model, labels, bos=0, eos=0)
    for sentence in sentences:
        fresh = NgramScorer(model, labels, bos=0, eos=0)
        states = [s.initial_state(Encoded(torch.tensor([1]))) for s in (scorer, fresh)]
        for word in ["#", *sentence]:
            label = torch.tensor([[labels.index(word)]])
            row, states[0] = scorer.score(label, states[0])
            expected, states[1] = fresh.score(label, states[1])
            assert torch.equal(row, expected)
