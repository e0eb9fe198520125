"""CTC prefix probabilities against sums over all paths."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from returnn_hydra.search.ctc_prefix_scorer import CTCPrefixScorer
from returnn_hydra.search.label_sync import LabelSyncSearch, LengthNormalization
from returnn_hydra.search.scorer import CombinedScorer, Encoded
from returnn_hydra.search.step_scorer import DecoderScorer

C, T = 4, 5


def path_scores(toy: SimpleNamespace, table: torch.Tensor, blank: int) -> dict[tuple[int, ...], float]:
    """Log probability of every label sequence: the sum over its paths."""
    sums: dict[tuple[int, ...], list[float]] = {}
    for path in itertools.product(range(table.shape[1]), repeat=len(table)):
        score = sum(float(table[t, c]) for t, c in enumerate(path))
        sums.setdefault(toy.collapse(path, blank), []).append(score)
    return {labels: toy.log_sum(scores) for labels, scores in sums.items()}


@pytest.mark.parametrize("blank", [0, 2, -1])
def test_prefix_probabilities_are_sums_over_paths(toy: SimpleNamespace, blank: int) -> None:
    """Same numbers for classes and labels; the blank's label doubles as end of sequence."""
    encoded = toy.encoded(3, T, C, seed=5)
    eos = blank % C
    scorer = CTCPrefixScorer(C, eos=eos, blank=blank)
    for seq in range(3):
        alone = toy.part(encoded, [seq])
        exact = path_scores(toy, alone.ctc_log_probs[0, : int(alone.lengths[0])], eos)
        for prefix in toy.all_label_sequences([c for c in range(C) if c != eos], 3):
            if tuple(prefix) in exact:
                found = toy.sequence_score(scorer, alone, [*prefix, eos], bos=eos)
                assert found == pytest.approx(exact[tuple(prefix)], abs=1e-9)
            begin = [score for labels, score in exact.items() if labels[: len(prefix)] == tuple(prefix)]
            found = toy.sequence_score(scorer, alone, prefix, bos=eos)
            if begin:
                assert found == pytest.approx(toy.log_sum(begin), abs=1e-9)
            else:
                assert found < -5000 or math.isinf(found)


def test_label_probabilities_sum_to_one(toy: SimpleNamespace) -> None:
    encoded = toy.encoded(2, 30, C + 1)
    scorer = CTCPrefixScorer(C + 1, eos=C)
    state, last = scorer.initial_state(encoded), torch.full((2, 1), C)
    for label in [1, 1, 0, 2, 2, 3]:
        log_probs, state = scorer.score(last, state)
        assert torch.allclose(log_probs.logsumexp(-1), torch.zeros(2, 1, dtype=torch.double), atol=1e-9)
        last = torch.full((2, 1), label)


def test_blank_as_class_of_its_own(toy: SimpleNamespace) -> None:
    """C = V + 1 with a blank in the middle gives what renumbered classes give."""
    encoded = toy.encoded(2, T, C)
    labels = [0, 2, 3]  # classes of the labels 0, 1, 2 when the blank is class 1
    state = (scorer := CTCPrefixScorer(3, eos=0, blank=1)).initial_state(encoded)
    reordered = Encoded(encoded.lengths, None, encoded.ctc_log_probs[..., [*labels, 1]])
    other_state = (other := CTCPrefixScorer(3, eos=0, blank=-1)).initial_state(reordered)
    for label in (1, 2, 2):
        last = torch.full((2, 1), label)
        log_probs, state = scorer.score(last, state)
        expected, other_state = other.score(last, other_state)
        assert torch.equal(log_probs, expected)


def test_ctc_matches_torch_ctc_loss(toy: SimpleNamespace) -> None:
    encoded = toy.encoded(1, 40, 11, seed=9)
    labels = [3, 3, 1, 0, 9, 9, 2, 5]
    loss = torch.nn.functional.ctc_loss(
        encoded.ctc_log_probs.double().transpose(0, 1),
        torch.tensor([labels]),
        encoded.lengths,
        torch.tensor([len(labels)]),
        blank=10,
        reduction="sum",
    )
    found = toy.sequence_score(CTCPrefixScorer(11, eos=10), encoded, [*labels, 10], bos=10)
    assert found == pytest.approx(-float(loss), abs=1e-9)


def test_search_with_ctc_alone_finds_the_true_best(toy: SimpleNamespace) -> None:
    encoded = toy.encoded(3, T, C, seed=6)
    search = LabelSyncSearch(
        CTCPrefixScorer(C, eos=C - 1),
        bos=C - 1,
        eos=C - 1,
        beam_size=300,
        num_best=10,
        stop_after=None,
        length_normalization=LengthNormalization("none"),
    )
    for seq, found in enumerate(search(encoded)):
        exact = path_scores(toy, encoded.ctc_log_probs[seq, : int(encoded.lengths[seq])], C - 1)
        best = sorted(exact, key=lambda labels: -exact[labels])[:10]
        assert [tuple(hyp.labels) for hyp in found] == best
        assert [hyp.score for hyp in found] == pytest.approx([exact[labels] for labels in best], abs=1e-9)


def test_joint_search_does_not_depend_on_the_batch(toy: SimpleNamespace) -> None:
    torch.manual_seed(2)
    scorer = CombinedScorer(
        {"am": DecoderScorer(toy.Decoder(C), C), "ctc": CTCPrefixScorer(C, eos=0)}, {"am": 0.7, "ctc": 0.3}
    )
    search = LabelSyncSearch(scorer, bos=0, eos=0, beam_size=5, num_best=4)
    encoded = toy.encoded(5, 12, C + 1, seed=8)
    whole = search(encoded)
    order = [3, 0, 4, 1, 2]
    shuffled = search(toy.part(encoded, order, extra_frames=4))
    for seq in range(5):
        alone = search(toy.part(encoded, [seq], cut=True))[0]
        for other in (alone, shuffled[order.index(seq)]):
            assert [hyp.labels for hyp in other] == [hyp.labels for hyp in whole[seq]]
            assert [hyp.score for hyp in other] == pytest.approx([hyp.score for hyp in whole[seq]], abs=1e-6)
        for hyp in whole[seq]:
            total = toy.sequence_score(scorer, toy.part(encoded, [seq]), [*hyp.labels, 0], 0)
            assert hyp.score == pytest.approx(total / (len(hyp.labels) + 1), abs=1e-6)


def test_errors_teach(toy: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="4 classes; expected the vocabulary size 7, or 8"):
        CTCPrefixScorer(7, eos=0).initial_state(toy.encoded(1, 3, 4))
    with pytest.raises(ValueError, match="ctc_log_probs"):
        CTCPrefixScorer(7, eos=0).initial_state(Encoded(torch.tensor([3])))
