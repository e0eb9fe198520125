"""KenLM's scores against those of our own reading of the same file."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import pytest
import torch

from returnn_hydra.extras import MissingExtra
from returnn_hydra.search.kenlm_scorer import BINARY_MAGIC, KenLMScorer, is_kenlm_binary
from returnn_hydra.search.ngram import NgramScorer
from returnn_hydra.search.ngram_estimate import estimate_ngrams, write_arpa
from returnn_hydra.search.scorer import Encoded
from returnn_hydra.search.search_step import language_model_scorer

LABELS = ["a", " ", "b", "</s>"]
END = 3


@pytest.fixture
def arpa(tmp_path: Path) -> Path:
    texts = [["a", "b", "<space>", "a"], ["b", "<space>", "b"], ["a", "a", "b"], ["b", "a"]]
    write_arpa(estimate_ngrams(texts, 3), tmp_path / "lm.arpa")
    return tmp_path / "lm.arpa"


def all_scores(scorer: KenLMScorer | NgramScorer) -> torch.Tensor:
    """Rows behind every history of up to four labels, all sequences in one batch."""
    histories = list(itertools.product(range(3), repeat=4))
    state = scorer.initial_state(Encoded(torch.ones(len(histories), dtype=torch.long)))
    columns = [torch.full((len(histories), 1), END), *torch.tensor(histories).t()[:, :, None]]
    rows = []
    for column in columns:
        scores, state = scorer.score(column, state)
        rows.append(scores)
    return torch.cat(rows, dim=1)


def test_same_scores_as_our_own(arpa: Path) -> None:
    pytest.importorskip("kenlm")
    expected = all_scores(NgramScorer(arpa, LABELS, END, END))
    found = all_scores(KenLMScorer(arpa, LABELS, END, END))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert float(expected.std()) > 0.1
    without_end = KenLMScorer(arpa, LABELS, END, None)
    assert (all_scores(without_end)[..., END] == -math.inf).all()


def test_named_in_the_configuration(arpa: Path) -> None:
    pytest.importorskip("kenlm")
    like = torch.zeros(1)
    scorer, bos, eos = language_model_scorer(f"kenlm:{arpa}", LABELS, END, like, 4)
    assert isinstance(scorer, KenLMScorer)
    assert (bos, eos) == (END, END)
    assert isinstance(language_model_scorer(str(arpa), LABELS, END, like, 4)[0], NgramScorer)


def test_binary_files_are_recognised(tmp_path: Path) -> None:
    pytest.importorskip("kenlm")
    file = tmp_path / "lm.bin"
    file.write_bytes(BINARY_MAGIC + b" format version 5\n\0" + bytes(200))
    assert is_kenlm_binary(file)
    with pytest.raises(ValueError, match=r"lm\.bin: Cannot read model"):
        language_model_scorer(str(file), LABELS, END, torch.zeros(1), 4)


def test_unknown_label(arpa: Path) -> None:
    pytest.importorskip("kenlm")
    with pytest.raises(ValueError, match=r"no <unk>, and no unigram for 1 of 4 labels, e.g. 'c'"):
        KenLMScorer(arpa, ["a", "b", "c", "</s>"], END, END)


def test_missing_package_names_the_extra(arpa: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with pytest.raises(MissingExtra, match=r"pip install 'returnn-hydra\[kenlm\]'"):
        language_model_scorer(f"kenlm:{arpa}", LABELS, END, torch.zeros(1), 4)
