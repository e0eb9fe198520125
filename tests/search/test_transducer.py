"""Transducer searches and scorer against sums over all paths of the lattice."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from returnn_hydra.search.label_sync import LabelSyncSearch, LengthNormalization
from returnn_hydra.search.scorer import CombinedScorer, Encoded
from returnn_hydra.search.step_scorer import LanguageModelScorer
from returnn_hydra.search.transducer_scorer import TransducerScorer
from returnn_hydra.search.transducer_search import TransducerBeamSearch, TransducerGreedySearch

V = 2
BLANK = EOS = V
Labels = tuple[int, ...]


@pytest.fixture
def model(toy: SimpleNamespace) -> torch.nn.Module:
    torch.manual_seed(11)
    return toy.Transducer(V).eval()


def node_scores(model: torch.nn.Module, encoded: Encoded, labels: Labels) -> torch.Tensor:
    """Log probabilities (T, U + 1, C) of one sequence at every node of the lattice of its labels."""
    state, fed, rows = model.initial_state(1, torch.device("cpu")), [BLANK, *labels], []
    for label in fed:
        predicted, state = model.predict(torch.tensor([label]), state)
        rows.append(model.joint(encoded.encoder[0, : int(encoded.lengths[0])], predicted).log_softmax(-1))
    return torch.stack(rows, 1).double()


def exact_score(toy: SimpleNamespace, model: torch.nn.Module, encoded: Encoded, labels: Labels) -> float:
    """log p(labels): the sum over all orders of the labels and the blanks of all frames (a blank is last)."""
    nodes = node_scores(model, encoded, labels)
    frames, count = len(nodes), len(labels)
    scores = []
    for places in itertools.combinations(range(frames + count - 1), count):
        t = u = 0
        score = 0.0
        for place in range(frames + count):
            if place in places:
                score += float(nodes[t, u, labels[u]])
                u += 1
            else:
                score += float(nodes[t, u, BLANK])
                t += 1
        scores.append(score)
    return toy.log_sum(scores)


@pytest.fixture(params=[False, True], ids=["alone", "with_lm"])
def lm(request: pytest.FixtureRequest, toy: SimpleNamespace) -> LanguageModelScorer | None:
    torch.manual_seed(12)
    return LanguageModelScorer(toy.LanguageModel(V + 1), V + 1) if request.param else None


def lm_score(toy: SimpleNamespace, lm: LanguageModelScorer | None) -> Callable[[Labels], float]:
    one = Encoded(torch.tensor([1]))
    return lambda labels: 0.0 if lm is None else toy.sequence_score(lm, one, list(labels), BLANK)


@torch.no_grad()
def test_wide_beam_finds_the_true_best(
    toy: SimpleNamespace, model: torch.nn.Module, lm: LanguageModelScorer | None
) -> None:
    encoded = toy.encoded(3, 4, V + 1, seed=2)
    search = TransducerBeamSearch(
        model,
        beam_size=300,
        num_best=15,
        max_labels_per_frame=0.5,
        max_labels=2,
        lm=lm,
        lm_scale=0.5,
        lm_bos=BLANK,
        lm_eos=BLANK,
        label_reward=0.1,
    )
    score = lm_score(toy, lm)
    for seq, found in enumerate(search(encoded)):
        alone = toy.part(encoded, [seq])
        total = {}
        for labels in map(tuple, toy.all_label_sequences([0, 1], int(alone.lengths[0]) // 2 + 2)):
            bonus = 0.5 * score((*labels, BLANK)) + 0.1 * len(labels)
            total[labels] = exact_score(toy, model, alone, labels) + bonus
        best = sorted(total, key=lambda labels: -total[labels])[:15]
        assert [tuple(hyp.labels) for hyp in found] == best
        assert [hyp.score for hyp in found] == pytest.approx([total[labels] for labels in best], abs=1e-5)


def slow_search(
    toy: SimpleNamespace,
    model: torch.nn.Module,
    encoded: Encoded,
    bonus: Callable[[Labels], float],
    *,
    beam_size: int,
    most: int,
    end: Callable[[Labels], float],
) -> list[tuple[float, Labels]]:
    """The documented rule with dictionaries, to the very end."""
    frames = int(encoded.lengths[0])
    beam: dict[Labels, float] = {(): 0.0}
    finished: list[tuple[float, Labels]] = []
    for step in range(frames + most):
        grown: dict[Labels, list[float]] = {}
        for labels, score in beam.items():
            frame = step - len(labels)
            row = node_scores(model, encoded, labels)[frame, -1].tolist()
            if frame == frames - 1:
                finished.append((score + row[BLANK] + end(labels), labels))
            else:
                grown.setdefault(labels, []).append(score + row[BLANK])
            for label in range(V) if len(labels) < most else ():
                grown.setdefault((*labels, label), []).append(score + row[label])
        sums = {labels: toy.log_sum(scores) for labels, scores in grown.items()}
        ranked = sorted(sums, key=lambda labels: -(sums[labels] + bonus(labels)))
        beam = {labels: sums[labels] for labels in ranked[:beam_size]}
    return sorted(finished, reverse=True)


@torch.no_grad()
@pytest.mark.parametrize("beam_size", [1, 2, 4])
def test_finite_beam_equals_the_slow_search(
    toy: SimpleNamespace, model: torch.nn.Module, lm: LanguageModelScorer | None, beam_size: int
) -> None:
    encoded = toy.encoded(3, 6, V + 1, seed=beam_size)
    search = TransducerBeamSearch(
        model, beam_size=beam_size, num_best=2, max_labels=2, lm=lm, lm_scale=0.6, lm_bos=BLANK, label_reward=0.0
    )
    score = lm_score(toy, lm)
    for seq, found in enumerate(search(encoded)):
        alone = toy.part(encoded, [seq])

        def bonus(labels: Labels) -> float:
            return 0.6 * score(labels)

        expected = slow_search(
            toy, model, alone, bonus, beam_size=beam_size, most=int(alone.lengths[0]) + 2, end=bonus
        )[:2]
        assert [tuple(hyp.labels) for hyp in found] == [labels for _, labels in expected]
        assert [hyp.score for hyp in found] == pytest.approx([total for total, _ in expected], abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("most", [1, 3])
def test_greedy_follows_the_best_class(toy: SimpleNamespace, model: torch.nn.Module, most: int) -> None:
    encoded = toy.encoded(4, 7, V + 1, seed=4)
    for seq, (hyp,) in enumerate(TransducerGreedySearch(model, max_labels_per_frame=most)(encoded)):
        labels: list[int] = []
        times, total, in_frame, frame = [], 0.0, 0, 0
        alone = toy.part(encoded, [seq])
        while frame < int(alone.lengths[0]):
            row = node_scores(model, alone, tuple(labels))[frame, -1]
            label = BLANK if in_frame == most else int(row.argmax())
            total += float(row[label])
            if label == BLANK:
                frame, in_frame = frame + 1, 0
            else:
                labels.append(label)
                times.append((frame, frame + 1))
                in_frame += 1
        assert hyp.labels == labels
        assert hyp.times == times
        assert hyp.score == pytest.approx(total, abs=1e-5)


@torch.no_grad()
def test_result_does_not_depend_on_the_batch(
    toy: SimpleNamespace, model: torch.nn.Module, lm: LanguageModelScorer | None
) -> None:
    encoded = toy.encoded(5, 10, V + 1, seed=5)
    order = [4, 2, 0, 1, 3]
    for search in (
        TransducerGreedySearch(model),
        TransducerBeamSearch(model, beam_size=4, num_best=3, lm=lm, lm_bos=BLANK),
    ):
        whole = search(encoded)
        shuffled = search(toy.part(encoded, order, extra_frames=3))
        for seq in range(5):
            alone = search(toy.part(encoded, [seq], cut=True))[0]
            for other in (alone, shuffled[order.index(seq)]):
                assert [hyp.labels for hyp in other] == [hyp.labels for hyp in whole[seq]]
                assert [hyp.score for hyp in other] == pytest.approx([hyp.score for hyp in whole[seq]], abs=1e-5)


@torch.no_grad()
def test_without_frames_the_empty_sequence_is_certain(
    toy: SimpleNamespace, model: torch.nn.Module, lm: LanguageModelScorer | None
) -> None:
    encoded = toy.encoded(3, 4, V + 1, seed=5)
    mixed = replace(encoded, lengths=encoded.lengths * torch.tensor([1, 0, 1]))
    scorer = TransducerScorer(model, V + 1, eos=EOS)
    beam = TransducerBeamSearch(model, beam_size=4, lm=lm, lm_bos=BLANK, lm_eos=BLANK, lm_scale=0.5)
    for search, end in (
        (TransducerGreedySearch(model), 0.0),
        (beam, 0.5 * lm_score(toy, lm)((BLANK,))),
        (LabelSyncSearch(scorer, bos=EOS, eos=EOS, beam_size=4, length_normalization=LengthNormalization("none")), 0.0),
    ):
        found, whole = search(mixed), search(encoded)
        assert (found[1][0].labels, found[1][0].score) == ([], pytest.approx(end, abs=1e-6))
        for seq in (0, 2):
            assert found[seq][0].labels == whole[seq][0].labels


@torch.no_grad()
def test_scorer_gives_the_exact_probability(toy: SimpleNamespace, model: torch.nn.Module) -> None:
    encoded = toy.encoded(2, 4, V + 1, seed=6)
    scorer = TransducerScorer(model, V + 1, eos=EOS)
    for seq in range(2):
        alone = toy.part(encoded, [seq])
        for labels in map(tuple, toy.all_label_sequences([0, 1], 4)):
            found = toy.sequence_score(scorer, alone, [*labels, EOS], BLANK)
            assert found == pytest.approx(exact_score(toy, model, alone, labels), abs=1e-5)


@torch.no_grad()
def test_scorer_is_a_distribution(toy: SimpleNamespace, model: torch.nn.Module) -> None:
    encoded = toy.encoded(2, 6, V + 1)
    scorer = TransducerScorer(model, V + 1, eos=EOS)
    state, last = scorer.initial_state(encoded), torch.full((2, 1), BLANK)
    for label in [0, 1, 1, 0]:
        log_probs, state = scorer.score(last, state)
        assert torch.allclose(log_probs.logsumexp(-1), torch.zeros(2, 1, dtype=torch.double), atol=1e-9)
        last = torch.full((2, 1), label)


@torch.no_grad()
def test_label_synchronous_search_with_a_transducer(
    toy: SimpleNamespace, model: torch.nn.Module, lm: LanguageModelScorer | None
) -> None:
    encoded = toy.encoded(3, 4, V + 1, seed=9)
    scorers = {"am": TransducerScorer(model, V + 1, eos=EOS)} | ({} if lm is None else {"lm": lm})
    scorer = CombinedScorer(scorers, {name: {"am": 1.0, "lm": 0.4}[name] for name in scorers})
    search = LabelSyncSearch(
        scorer,
        bos=EOS,
        eos=EOS,
        beam_size=100,
        num_best=5,
        stop_after=None,
        length_normalization=LengthNormalization("none"),
    )
    score = lm_score(toy, lm)
    results = search(encoded)
    for seq, found in enumerate(results):
        alone = toy.part(encoded, [seq])
        total = {
            labels: exact_score(toy, model, alone, labels) + 0.4 * score((*labels, EOS))
            for labels in map(tuple, toy.all_label_sequences([0, 1], int(alone.lengths[0])))
        }
        best = sorted(total, key=lambda labels: -total[labels])[:5]
        assert [tuple(hyp.labels) for hyp in found] == best
        assert [hyp.score for hyp in found] == pytest.approx([total[labels] for labels in best], abs=1e-5)
        other = search(toy.part(encoded, [seq, 0], extra_frames=2))[0]
        assert [hyp.score for hyp in other] == pytest.approx([hyp.score for hyp in found], abs=1e-6)


def test_errors_teach(toy: SimpleNamespace, model: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="expected 2 and the end of the sequence"):
        TransducerScorer(model, 7, eos=6)
    with pytest.raises(ValueError, match=r"Encoded\.encoder"):
        TransducerGreedySearch(model)(Encoded(torch.tensor([3])))
    with pytest.raises(ValueError, match="at least 1"):
        TransducerGreedySearch(model, max_labels_per_frame=0)
    assert math.isfinite(TransducerBeamSearch(model)(toy.encoded(1, 3, V + 1))[0][0].score)
