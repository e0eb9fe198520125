"""Label-synchronous search against enumeration of all label sequences and against a slow search in plain Python."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import pytest
import torch

from returnn_hydra.search.label_sync import GreedySearch, LabelSyncSearch, LengthNormalization
from returnn_hydra.search.result import NOTHING
from returnn_hydra.search.scorer import CombinedScorer, Encoded, LabelScorer
from returnn_hydra.search.step_scorer import DecoderScorer, LanguageModelScorer

V, EOS, BOS = 4, 0, 0
NORMS = [LengthNormalization("none"), LengthNormalization("power", 0.7), LengthNormalization("gnmt", 0.9, reward=0.4)]


@pytest.fixture(params=["decoder", "with_lm", "minus_ilm"])
def scorer(request: pytest.FixtureRequest, toy: SimpleNamespace) -> LabelScorer:
    torch.manual_seed(3)
    scorers = {
        "am": DecoderScorer(toy.Decoder(V), V),
        "lm": LanguageModelScorer(toy.LanguageModel(V), V),
        "ilm": LanguageModelScorer(toy.LanguageModel(V), V),
    }
    scales = {
        "decoder": {"am": 1.0},
        "with_lm": {"am": 1.0, "lm": 0.3},
        "minus_ilm": {"am": 1.0, "lm": 0.5, "ilm": -0.3},
    }
    chosen = scales[request.param]
    return CombinedScorer({name: scorers[name] for name in chosen}, chosen)


def norm(kind: LengthNormalization, length: int) -> float:
    return {"none": 1.0, "power": length**kind.exponent, "gnmt": ((5 + length) / 6) ** kind.exponent}[kind.kind]


@pytest.mark.parametrize("normalization", NORMS, ids=lambda n: n.kind)
def test_wide_beam_finds_the_true_best(
    toy: SimpleNamespace, scorer: LabelScorer, normalization: LengthNormalization
) -> None:
    encoded = toy.encoded(3, 4, V)
    search = LabelSyncSearch(
        scorer, bos=BOS, eos=EOS, beam_size=500, num_best=500, stop_after=None, length_normalization=normalization
    )
    for seq, found in enumerate(search(encoded)):
        alone = toy.part(encoded, [seq])
        scored = []
        for labels in toy.all_label_sequences([1, 2, 3], int(alone.lengths[0])):
            total = toy.sequence_score(scorer, alone, [*labels, EOS], BOS) + normalization.reward * len(labels)
            scored.append((total / norm(normalization, len(labels) + 1), labels))
        scored.sort(key=lambda item: -item[0])
        assert [hyp.labels for hyp in found] == [labels for _, labels in scored]
        assert [hyp.score for hyp in found] == pytest.approx([score for score, _ in scored], abs=1e-5)


def slow_search(
    toy: SimpleNamespace,
    scorer: LabelScorer,
    encoded: Encoded,
    normalization: LengthNormalization,
    *,
    beam: int,
    num_best: int,
    stop_after: int | None,
    shortest: int,
    longest: int,
) -> list[tuple[float, list[int]]]:
    """The documented rule, one hypothesis at a time, every score from scratch."""
    active, finished, accepted = [(0.0, [])], [], 0
    for step in range(longest + 1):
        candidates = []
        for index, (_, labels) in enumerate(active):
            for label in range(V):
                if (label == EOS and step < shortest) or (label != EOS and step >= longest):
                    continue
                total = toy.sequence_score(scorer, encoded, [*labels, label], BOS)
                candidates.append((total, -index, -label, labels, label))
        candidates.sort(key=lambda c: (c[0], c[1], c[2]), reverse=True)
        for total, _, _, labels, label in candidates[:beam]:
            if label == EOS:
                finished.append(((total + normalization.reward * step) / norm(normalization, step + 1), labels))
                accepted += 1
        active = [(c[0], [*c[3], c[4]]) for c in candidates if c[4] != EOS][:beam]
        if not active or (stop_after is not None and accepted >= stop_after):
            break
    return sorted(finished, key=lambda item: -item[0])[:num_best]


@pytest.mark.parametrize("beam", [1, 2, 5])
@pytest.mark.parametrize("stop_after", ["beam", 3, None])
@pytest.mark.parametrize("normalization", NORMS, ids=lambda n: n.kind)
def test_finite_beam_equals_the_slow_search(
    toy: SimpleNamespace,
    scorer: LabelScorer,
    beam: int,
    stop_after: int | str | None,
    normalization: LengthNormalization,
) -> None:
    encoded = toy.encoded(3, 6, V, seed=beam)
    search = LabelSyncSearch(
        scorer,
        bos=BOS,
        eos=EOS,
        beam_size=beam,
        num_best=2,
        stop_after=stop_after,
        length_normalization=normalization,
        max_labels_per_frame=0.5,
        max_labels=1,
        min_labels_per_frame=0.25,
    )
    for seq, found in enumerate(search(encoded)):
        alone = toy.part(encoded, [seq])
        frames = int(alone.lengths[0])
        expected = slow_search(
            toy,
            scorer,
            alone,
            normalization,
            beam=beam,
            num_best=2,
            stop_after=beam if stop_after == "beam" else stop_after,
            shortest=frames // 4,
            longest=frames // 2 + 1,
        )
        assert [hyp.labels for hyp in found] == [labels for _, labels in expected]
        assert [hyp.score for hyp in found] == pytest.approx([score for score, _ in expected], abs=1e-5)


def test_result_does_not_depend_on_the_batch(toy: SimpleNamespace, scorer: LabelScorer) -> None:
    encoded = toy.encoded(6, 9, V, seed=1)
    search = LabelSyncSearch(scorer, bos=BOS, eos=EOS, beam_size=4, num_best=3)
    whole = search(encoded)
    order = random.Random(0).sample(range(6), 6)
    shuffled = search(toy.part(encoded, order, extra_frames=3))
    for seq in range(6):
        alone = search(toy.part(encoded, [seq], cut=True))[0]
        for other in (alone, shuffled[order.index(seq)]):
            assert [hyp.labels for hyp in other] == [hyp.labels for hyp in whole[seq]]
            assert [hyp.score for hyp in other] == pytest.approx([hyp.score for hyp in whole[seq]], abs=1e-6)


def test_greedy_takes_the_best_label_of_every_step(toy: SimpleNamespace, scorer: LabelScorer) -> None:
    encoded = toy.encoded(4, 7, V, seed=2)
    for seq, found in enumerate(GreedySearch(scorer, bos=BOS, eos=EOS)(encoded)):
        alone = toy.part(encoded, [seq])
        state, last, labels, total = scorer.initial_state(alone), BOS, [], 0.0
        while True:
            log_probs, state = scorer.score(torch.tensor([[last]]), state)
            row = log_probs[0, 0]
            last = EOS if len(labels) == int(alone.lengths[0]) else int(row.argmax())
            total += float(row[last])
            if last == EOS:
                break
            labels.append(last)
        assert found[0].labels == labels
        assert found[0].score == pytest.approx(total, abs=1e-5)


class TableScorer:
    """Fixed scores per step, whatever the history."""

    def __init__(self, table: list[list[float]]) -> None:
        self.table = torch.tensor(table)
        self.vocab_size = self.table.shape[1]
        self.max_score = 0.0
        self.calls = 0

    def initial_state(self, encoded: Encoded) -> int:
        return 0

    def score(self, labels: torch.Tensor, state: int) -> tuple[torch.Tensor, int]:
        self.calls += 1
        return self.table[state].expand(*labels.shape, -1), state + 1

    def select(self, state: int, parents: torch.Tensor) -> int:
        return state

    def keep(self, state: int, seqs: torch.Tensor) -> int:
        return state

    def concat(self, states: list[int]) -> int:
        return states[0]


def test_stops_as_soon_as_nothing_can_get_better() -> None:
    table = [[-0.1, -3.0, -4.0]] + [[-2.0, -0.5, -1.0]] * 50
    scorer = TableScorer(table)
    search = LabelSyncSearch(
        scorer, bos=0, eos=0, beam_size=2, stop_after=None, length_normalization=LengthNormalization("none")
    )
    assert search(Encoded(torch.tensor([50])))[0][0].labels == []
    assert scorer.calls == 1


def test_impossible_limits_give_nothing() -> None:
    scorer = TableScorer([[-math.inf, 0.0]] * 3)
    assert LabelSyncSearch(scorer, bos=0, eos=0)(Encoded(torch.tensor([2, 1]))) == [[NOTHING], [NOTHING]]


def test_nan_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"label number 2 .* NaN"):
        LabelSyncSearch(TableScorer([[-1.0, -0.5], [math.nan, 0.0]]), bos=0, eos=0)(Encoded(torch.tensor([3])))


def test_constant_state_is_not_copied(toy: SimpleNamespace) -> None:
    scorer = DecoderScorer(toy.Decoder(V), V)
    state = scorer.initial_state(toy.encoded(2, 5, V))
    _, state = scorer.score(torch.zeros(2, 1, dtype=torch.long), state)
    state = scorer.select(state, torch.zeros(2, 3, dtype=torch.long))
    _, stepped = scorer.score(torch.ones(2, 3, dtype=torch.long), state)
    parents = torch.tensor([[2, 0, 1], [1, 1, 0]])
    selected = scorer.select(stepped, parents)
    assert selected.tensors["keys"] is stepped.tensors["keys"]
    rows = [2, 0, 1, 4, 4, 3]
    assert torch.equal(selected.tensors["hidden"], stepped.tensors["hidden"][rows])


class InPlaceDecoder:
    """Writes its history into one tensor of the state, which it returns again and again."""

    def initial_state(self, encoder_out: torch.Tensor, encoder_lengths: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"history": torch.zeros(len(encoder_out), 6)}

    def step(
        self, labels: torch.Tensor, state: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        state["history"].mul_(0.5)[:, 0] += labels
        weights = torch.arange(V) * state["history"].sum(1, keepdim=True)
        return torch.sin(weights * 7).log_softmax(1), state


def test_state_that_changes_in_place_is_selected(toy: SimpleNamespace) -> None:
    scorer = DecoderScorer(InPlaceDecoder(), V)
    encoded = toy.encoded(2, 5, V)
    found = LabelSyncSearch(scorer, bos=BOS, eos=EOS, beam_size=3, num_best=3, stop_after=None)(encoded)
    for seq in range(2):
        alone = toy.part(encoded, [seq])
        for hyp in found[seq]:
            total = toy.sequence_score(scorer, alone, [*hyp.labels, EOS], BOS)
            assert hyp.score == pytest.approx(total / (len(hyp.labels) + 1), abs=1e-5)


def test_errors_teach(toy: SimpleNamespace) -> None:
    decoder = DecoderScorer(toy.Decoder(V), V)
    with pytest.raises(ValueError, match="did you mean 'decoder'"):
        CombinedScorer({"decoder": decoder}, {"decoder": 1.0, "decodr": 0.3})
    with pytest.raises(ValueError, match=r"one vocabulary.*'lm': 7"):
        CombinedScorer(
            {"am": decoder, "lm": LanguageModelScorer(toy.LanguageModel(7), 7)},
            {"am": 1.0, "lm": 0.3},
        )
    with pytest.raises(ValueError, match="eos=9 is not a label; there are 4"):
        LabelSyncSearch(decoder, bos=0, eos=9)
    with pytest.raises(ValueError, match="encoder's output"):
        decoder.initial_state(Encoded(torch.tensor([3])))
    with pytest.raises(ValueError, match="not one of none, power, gnmt"):
        LengthNormalization("mean")
    wrong = DecoderScorer(toy.Decoder(V), 9)
    state = wrong.initial_state(toy.encoded(1, 3, V))
    with pytest.raises(ValueError, match=r"expected \(1 hypotheses, 9 labels\)"):
        wrong.score(torch.zeros(1, 1, dtype=torch.long), state)


def test_coverage_counts_attended_frames(toy: SimpleNamespace) -> None:
    class AttentionSums(toy.Decoder):
        """Also keeps the sum of its attention weights, sharpened so that frames get covered."""

        def initial_state(self, *args: torch.Tensor) -> dict[str, torch.Tensor]:
            state = super().initial_state(*args)
            return {**state, "attended": state["mask"].float() * 0}

        def step(self, labels: torch.Tensor, state: dict) -> tuple[torch.Tensor, dict]:
            log_probs, new_state = super().step(labels, state)
            energy = torch.einsum("nd,ntd->nt", 9 * new_state["hidden"], state["keys"])
            weights = energy.masked_fill(~state["mask"], -torch.inf).softmax(1)
            return log_probs, {**new_state, "attended": state["attended"] + weights}

    torch.manual_seed(1)
    decoder = AttentionSums(V)
    encoded = toy.encoded(2, 4, V)
    scorer = DecoderScorer(decoder, V, coverage_scale=0.8, coverage_threshold=0.4)
    found = LabelSyncSearch(
        scorer,
        bos=BOS,
        eos=EOS,
        beam_size=500,
        num_best=6,
        stop_after=None,
        length_normalization=LengthNormalization("none"),
    )(encoded)
    covered = set()
    for seq in range(2):
        alone, total = toy.part(encoded, [seq]), {}
        for labels in map(tuple, toy.all_label_sequences([1, 2, 3], int(alone.lengths[0]))):
            score = toy.sequence_score(DecoderScorer(decoder, V), alone, [*labels, EOS], BOS)
            with torch.no_grad():
                state = decoder.initial_state(alone.encoder, alone.lengths)
                for label in (BOS, *labels):
                    _, state = decoder.step(torch.tensor([label]), state)
            coverage = int((state["attended"] > 0.4).sum())
            covered.add(coverage)
            total[labels] = score + 0.8 * coverage
        best = sorted(total, key=lambda labels: -total[labels])[:6]
        assert [tuple(hyp.labels) for hyp in found[seq]] == best
        assert [hyp.score for hyp in found[seq]] == pytest.approx([total[labels] for labels in best], abs=1e-5)
    assert len(covered) > 1
    with pytest.raises(ValueError, match="state 'attended', and ToyDecoder has only hidden, context, keys, mask"):
        DecoderScorer(toy.Decoder(V), V, coverage_scale=0.1).initial_state(encoded)


def test_decoder_that_shares_the_memory(toy: SimpleNamespace) -> None:
    """One row of keys per sequence, not per hypothesis, gives the same."""

    class SharedToyDecoder(toy.Decoder):
        shares_memory = True

        def step(self, labels: torch.Tensor, state: dict) -> tuple[torch.Tensor, dict]:
            repeats = len(labels) // len(state["keys"])
            sizes.add((len(labels), len(state["keys"])))
            repeated = {name: state[name].repeat_interleave(repeats, 0) for name in ("keys", "mask")}
            log_probs, new_state = super().step(labels, {**state, **repeated})
            return log_probs, {**new_state, "keys": state["keys"], "mask": state["mask"]}

    sizes: set[tuple[int, int]] = set()
    torch.manual_seed(0)
    decoder = toy.Decoder(V)
    shared = SharedToyDecoder(V)
    shared.load_state_dict(decoder.state_dict())
    encoded = toy.encoded(5, 9, V)
    results = [
        LabelSyncSearch(DecoderScorer(module, V), bos=BOS, eos=EOS, beam_size=3, num_best=3)(encoded)
        for module in (decoder, shared)
    ]
    assert results[0] == results[1]
    assert {rows // seqs for rows, seqs in sizes} == {1, 3}
    assert len({seqs for _, seqs in sizes}) > 1  # sequences that are done are dropped
