"""Interpolated language models: probabilities by hand, states that follow the beam, and the models of a search."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from returnn_hydra.search.ctc_prefix_search import CTCPrefixSearch
from returnn_hydra.search.mixture import Mixture, MixtureScorer
from returnn_hydra.search.ngram import NgramScorer
from returnn_hydra.search.ngram_estimate import estimate_ngrams, write_arpa
from returnn_hydra.search.scorer import Encoded
from returnn_hydra.search.search_step import language_model_scorer
from returnn_hydra.search.word_lookahead import WordLookahead, WordNgrams

LABELS = ["a", "b", " ", "</s>"]
END = 3
TEXTS = ["a ab", "ab b a", "b", "ab ab bb"]
CHARACTERS = [["<space>" if char == " " else char for char in text] for text in TEXTS]
ONE = Encoded(torch.tensor([1]))


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    write_arpa(estimate_ngrams(CHARACTERS, 3), tmp_path / "chars.arpa")
    write_arpa(estimate_ngrams([text.split() for text in TEXTS], 2), tmp_path / "words.arpa")
    return str(tmp_path / "chars.arpa"), str(tmp_path / "words.arpa")


@pytest.fixture
def parts(files: tuple[str, str]) -> tuple[NgramScorer, WordLookahead]:
    return NgramScorer(files[0], LABELS, END, END), WordLookahead(files[1], LABELS, " ", END, END)


def test_every_label_is_interpolated(parts: tuple[NgramScorer, WordLookahead]) -> None:
    mixture = MixtureScorer(parts, [0.25, 0.75])
    mixed, states = mixture.initial_state(ONE), [part.initial_state(ONE) for part in parts]
    for label in (END, 0, 1, 2, 1):
        scores, mixed = mixture.score(torch.tensor([[label]]), mixed)
        expected = torch.zeros(4)
        for i, (part, weight) in enumerate(zip(parts, (0.25, 0.75), strict=True)):
            found, states[i] = part.score(torch.tensor([[label]]), states[i])
            expected += weight * found[0, 0].exp()
        torch.testing.assert_close(scores[0, 0].exp(), expected)


def test_finds_the_best_sequence_by_brute_force(parts: tuple[NgramScorer, WordLookahead], toy: SimpleNamespace) -> None:
    mixture = MixtureScorer(parts, [0.5, 0.5])
    log_probs = (2 * torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(3))).log_softmax(-1)
    search = CTCPrefixSearch(blank=END, beam_size=200, lm=mixture, lm_scale=0.7, lm_bos=END, lm_eos=END)
    results = search(Encoded(torch.tensor([3, 2]), None, log_probs))
    for seq, length in enumerate((3, 2)):
        scores = {}
        for labels in toy.all_label_sequences([0, 1, 2], length):
            nats = torch.nn.functional.ctc_loss(
                log_probs[seq, :length, None],
                torch.tensor([list(labels)]).long(),
                (length,),
                (len(labels),),
                END,
                "sum",
            )
            lm = toy.sequence_score(mixture, ONE, [*labels, END], END)
            scores[tuple(labels)] = -nats.item() + 0.7 * lm
        best = max(scores, key=lambda labels: scores[labels])
        assert tuple(results[seq][0].labels) == best
        assert results[seq][0].score == pytest.approx(scores[best], abs=1e-4)


def test_a_search_builds_it_of_files_and_modules(files: tuple[str, str], toy: SimpleNamespace) -> None:
    model: nn.Module = toy.LanguageModel(4)
    model.num_classes, model.bos_id, model.eos_id = 4, END, END  # type: ignore[assignment]
    conf = Mixture([files[0], WordNgrams(files[1]), model], [0.5, 0.3, 0.2])
    scorer, bos, eos = language_model_scorer(conf, LABELS, END, torch.tensor([1]), 4)
    assert (bos, eos) == (END, END)
    parts = [language_model_scorer(part, LABELS, END, torch.tensor([1]), 4)[0] for part in conf.models]
    found = scorer.score(torch.tensor([[END]]), scorer.initial_state(ONE))[0]
    every = [part.score(torch.tensor([[END]]), part.initial_state(ONE))[0].exp() for part in parts]
    torch.testing.assert_close(found.exp(), 0.5 * every[0] + 0.3 * every[1] + 0.2 * every[2])


def test_models_with_other_boundaries_are_refused(files: tuple[str, str], toy: SimpleNamespace) -> None:
    model: nn.Module = toy.LanguageModel(4)
    model.num_classes, model.bos_id, model.eos_id = 4, 0, 0  # type: ignore[assignment]
    with pytest.raises(ValueError, match="same labels for begin and end"):
        language_model_scorer(Mixture([files[0], model], [0.5, 0.5]), LABELS, END, torch.tensor([1]), 4)


@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.4], [1.5, -0.5], []])
def test_weights_are_checked(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="2 positive numbers"):
        Mixture(["x.arpa", "y.arpa"], weights)


def test_vocabularies_must_be_equal(parts: tuple[NgramScorer, WordLookahead]) -> None:
    other = NgramScorer(parts[0].model, [*LABELS[:3], "a", "</s>"], 4, 4)
    with pytest.raises(ValueError, match="one vocabulary"):
        MixtureScorer([parts[0], other], [0.5, 0.5])
    assert math.isclose(MixtureScorer(parts, [0.5, 0.5]).max_score, 0.0)
