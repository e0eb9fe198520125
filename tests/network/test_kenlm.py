"""The layer `kenlm` against KenLM's own scores of whole texts."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkError, NetworkModel
from returnn_hydra.search.ngram_estimate import estimate_ngrams, write_arpa
from returnn_hydra.search.word_model import KenLMWords, text_score, word_model

WORDS = ["</s>", "a", "b", "odd"]
PARTS = ["</s>", "a", "b@@", "c", "a@@"]


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    texts = [["a", "b", "ba", "a"], ["b", "bc", "b"], ["a", "a", "bac"], ["b", "a", "c"]]
    write_arpa(estimate_ngrams(texts, 3), tmp_path / "lm.arpa")
    return tmp_path / "lm.arpa"


@lru_cache
def load(arpa: Path) -> Any:
    kenlm = pytest.importorskip("kenlm")
    options = kenlm.Config()
    options.show_progress = False
    return kenlm.LanguageModel(str(arpa), options)


def kenlm_score(arpa: Path, text: str) -> float:
    return float(load(arpa).score(text, bos=True, eos=False)) * math.log(10)


def scores(labels: list[str], rows: list[list[int]], where: str = "data:source", **options: Any) -> torch.Tensor:
    """(B, T[, V]) of the layer in a loop over the labels."""
    layer = {"class": "kenlm", "from": where, "vocab_file": "vocab", **options}
    unit = {
        "output": {"class": "copy", "from": "lm"},
        "lm": layer,
        "label": {"class": "copy", "from": "data:source", "initial_output": 0},
    }
    net = {"output": {"class": "rec", "from": "data", "unit": unit}}
    data = {"data": TensorSpec(dim=len(labels), sparse=True)}
    model = NetworkModel(net, data, read_labels=lambda path: labels).eval()
    lengths = torch.full((len(rows),), len(rows[0]))
    batch = Batch(
        {"data": torch.tensor(rows, dtype=torch.int32)}, {"data": lengths}, [str(i) for i in range(len(rows))]
    )
    with torch.no_grad():
        return model(batch).outputs["output"].batch_major().raw


def text_of(labels: list[str], row: list[int]) -> str:
    return "".join(f"{labels[i]} " for i in row).replace("@@ ", "")


@pytest.mark.parametrize("labels", [WORDS, PARTS], ids=["words", "parts"])
def test_scores_of_prefixes(arpa: Path, labels: list[str]) -> None:
    rows = [list(row) for row in itertools.product(range(len(labels)), repeat=3)]
    found = scores(labels, rows, lm_file=str(arpa), bpe_merge_symbol="@@").cumsum(1)
    for values, row in zip(found.tolist(), rows, strict=True):
        for n in range(1, 4):
            assert values[n - 1] == pytest.approx(kenlm_score(arpa, text_of(labels, row[:n])), rel=1e-4)


@pytest.mark.parametrize("labels", [WORDS, PARTS], ids=["words", "parts"])
def test_all_that_may_follow(arpa: Path, labels: list[str]) -> None:
    """Behind "b@@", every label is looked up with "b" in front; what was there counts as the word "b@@"."""
    rows = [[1, 2, 1], [2, 2, 3], [3, 1, 2]]
    found = scores(labels, rows, lm_file=lambda: str(arpa), bpe_merge_symbol="@@", dense_output=True)
    for values, row in zip(found.tolist(), rows, strict=True):
        for n in range(1, 4):
            text = text_of(labels, row[:n])
            base = kenlm_score(arpa, text if text.endswith(" ") else f"{text}@@")
            for label, value in zip(labels, values[n - 1], strict=True):
                assert value == pytest.approx(kenlm_score(arpa, text + label) - base, rel=1e-4, abs=1e-5)


def test_first_steps_left_out(arpa: Path) -> None:
    """`prev:label` begins with the initial label, which is no word."""
    found = scores(WORDS, [[1, 2, 2]], where="prev:label", lm_file=str(arpa), input_step_offset=1)[0]
    assert found[0] == 0
    assert float(found[1]) == pytest.approx(kenlm_score(arpa, "a"), rel=1e-4)
    assert float(found[1] + found[2]) == pytest.approx(kenlm_score(arpa, "a b"), rel=1e-4)


def test_search_with_the_model_as_in_a_search_over_all(arpa: Path) -> None:
    """Shallow fusion: the best of all label sequences of three steps, by the acoustic scores and the model."""
    frames = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(5))
    unit = {
        "lm": {"class": "kenlm", "from": "prev:output", "vocab_file": "vocab", "lm_file": str(arpa),
               "input_step_offset": 1, "dense_output": True},
        "am": {"class": "activation", "from": "data:source", "activation": "log_softmax"},
        "both": {"class": "eval", "from": ["am", "lm"], "eval": "source(0) + 0.7 * source(1)"},
        "output": {"class": "choice", "from": "both", "input_type": "log_prob", "beam_size": 64, "target": "classes",
                   "initial_output": 0, "length_normalization": False},
        "after": {"class": "kenlm", "from": "output", "vocab_file": "vocab", "lm_file": str(arpa),
                  "is_output_layer": True},
    }  # fmt: skip
    net = {
        "rec": {"class": "rec", "from": "data", "unit": unit, "target": "classes"},
        "output": {"class": "decide", "from": "rec", "loss": "edit_distance", "target": "classes"},
    }
    specs = {"data": TensorSpec(dim=4), "classes": TensorSpec(dim=4, sparse=True)}
    model = NetworkModel(net, specs, search=True, read_labels=lambda path: WORDS).eval()
    lengths = torch.tensor([3, 3])
    labels = torch.zeros(2, 3, dtype=torch.int32)
    batch = Batch({"data": frames, "classes": labels}, {"data": lengths, "classes": lengths}, ["x", "y"])
    outputs = model(batch, search=True).outputs
    found = outputs["output"].batch_major().raw.tolist()
    after = outputs["rec/after"].batch_major().raw[:, 0]  # (B, T) of the best hypotheses
    log_probs = frames.log_softmax(-1)
    for row, best, steps in zip(log_probs, found, after, strict=True):
        total = {
            path: sum(float(row[t, i]) for t, i in enumerate(path))
            + 0.7 * kenlm_score(arpa, " ".join(WORDS[i] for i in path))
            for path in itertools.product(range(4), repeat=3)
        }
        assert tuple(best) == max(total, key=lambda path: total[path])
        for n in range(1, 4):
            expected = kenlm_score(arpa, " ".join(WORDS[i] for i in best[:n]))
            assert float(steps[:n].sum()) == pytest.approx(expected, rel=1e-4)


def test_both_readers_agree(arpa: Path) -> None:
    pytest.importorskip("kenlm")
    ours, theirs = word_model(arpa), KenLMWords(arpa)
    for words in itertools.product(["a", "b", "bc", "never", "</s>"], repeat=3):
        text = " ".join(words)
        assert text_score(ours, text)[0] == pytest.approx(text_score(theirs, text)[0], rel=1e-4)


def test_errors(arpa: Path) -> None:
    with pytest.raises(NetworkError, match="has 4 labels, but the input has 5 classes"):
        NetworkModel(
            {"output": {"class": "rec", "from": "data", "unit": {
                "output": {"class": "kenlm", "from": "data:source", "vocab_file": "v", "lm_file": str(arpa)}}}},
            {"data": TensorSpec(dim=5, sparse=True)},
            read_labels=lambda path: WORDS,
        )  # fmt: skip
    with pytest.raises(NetworkError, match="inside of a rec layer"):
        NetworkModel(
            {"output": {"class": "kenlm", "from": "data", "vocab_file": "v", "lm_file": str(arpa)}},
            {"data": TensorSpec(dim=4, sparse=True)},
        )
