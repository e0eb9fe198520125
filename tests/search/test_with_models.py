"""The searches on the models of this package: scores against the models' own training pass, independence of the
batch.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from returnn_hydra.batch import Batch
from returnn_hydra.models.blstm import BLSTM
from returnn_hydra.models.encoder_decoder import EncoderDecoder
from returnn_hydra.models.lstm_decoder import LSTMDecoder
from returnn_hydra.models.lstm_lm import LSTMLanguageModel
from returnn_hydra.models.transducer import Transducer
from returnn_hydra.models.transformer_decoder import TransformerDecoder
from returnn_hydra.models.transformer_lm import TransformerLanguageModel
from returnn_hydra.search.ctc_steps import CTCPrefix
from returnn_hydra.search.label_sync_step import LabelSync
from returnn_hydra.search.result import Hypothesis, unpack
from returnn_hydra.search.scorer import CombinedScorer, Encoded
from returnn_hydra.search.search_step import SearchStep
from returnn_hydra.search.step_scorer import DecoderScorer, LanguageModelScorer
from returnn_hydra.search.transducer_steps import TransducerBeam, TransducerGreedy

V = 5


def make_encoder() -> BLSTM:
    return BLSTM(6, None, hidden_dim=8)


def make_models(name: str) -> tuple[nn.Module, nn.Module]:
    """An encoder-decoder with CTC output, and a language model."""
    torch.manual_seed(0)
    if name == "lstm":
        return EncoderDecoder(make_encoder(), LSTMDecoder(16, V, 8, 8, 8), V + 1), LSTMLanguageModel(V, 8, 8)
    decoder = TransformerDecoder(16, V, 8, 2, 2, positions=name)
    return EncoderDecoder(make_encoder(), decoder, V + 1), TransformerLanguageModel(V, 8, 2, 2, positions=name)


@pytest.fixture
def batch(toy: SimpleNamespace) -> Batch:
    encoded = toy.encoded(4, 9, V, dim=6)
    return Batch({"data": encoded.encoder}, {"data": encoded.lengths}, list("abcd"))


def run(step: SearchStep, model: nn.Module, batch: Batch) -> list[list[Hypothesis]]:
    with torch.inference_mode():
        rows = {name: output.per_sequence() for name, output in step(model.eval(), batch).items()}
    return [unpack({name: arrays[b] for name, arrays in rows.items()}) for b in range(batch.num_seqs)]


def alone(batch: Batch, seq: int) -> Batch:
    length = batch.lengths["data"][[seq]]
    return Batch({"data": batch["data"][[seq], : int(length)]}, {"data": length}, [batch.seq_tags[seq]])


def assert_same(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [hyp.labels for hyp in found] == [hyp.labels for hyp in expected]
    assert [hyp.score for hyp in found] == pytest.approx([hyp.score for hyp in expected], abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["lstm", "sinusoidal", "relative", "rotary"])
def test_attention_search_scores_are_those_of_the_training_pass(batch: Batch, name: str) -> None:
    model, lm = make_models(name)
    step = LabelSync(
        {"am": 0.8, "lm": 0.4, "ilm": -0.2},
        {"lm": lm},
        beam_size=4,
        num_best=3,
        length_normalization="none",
        max_labels=2,
    )
    results = run(step, model, batch)
    for seq, hyps in enumerate(results):
        one = alone(batch, seq)
        assert_same(run(step, model, one)[0], hyps)
        for hyp in hyps:
            fed, lengths = torch.tensor([[V, *hyp.labels]]), torch.tensor([len(hyp.labels) + 1])
            target = torch.tensor([*hyp.labels, V])[:, None]
            am = model(one["data"], one.lengths["data"], fed, lengths).logits[0].log_softmax(-1)
            without_encoder = model.decoder(fed, lengths, torch.zeros(1, 1, 16), torch.ones(1, dtype=torch.long))
            parts = {0.8: am, 0.4: lm(fed, lengths)[0].log_softmax(-1), -0.2: without_encoder[0].log_softmax(-1)}
            score = sum(scale * log_probs.gather(1, target).sum() for scale, log_probs in parts.items())
            assert hyp.score == pytest.approx(float(score), abs=1e-4)


@pytest.mark.parametrize("name", ["lstm", "rotary"])
def test_sequences_can_be_dropped_before_the_first_step(batch: Batch, name: str) -> None:
    """Caches are empty then."""
    model, lm = make_models(name)
    with torch.no_grad():
        encoder, lengths = model.encode(batch["data"], batch.lengths["data"])
    scorer = CombinedScorer(
        {"am": DecoderScorer(model.eval().decoder, V + 1), "lm": LanguageModelScorer(lm.eval(), V + 1)},
        {"am": 1.0, "lm": 0.5},
    )
    whole = scorer.initial_state(Encoded(lengths, encoder))
    expected, _ = scorer.score(torch.full((4, 1), V), whole)
    kept = scorer.keep(scorer.initial_state(Encoded(lengths, encoder)), torch.tensor([3, 1]))
    found, _ = scorer.score(torch.full((2, 1), V), kept)
    assert torch.allclose(found, expected[[3, 1]], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["lstm", "rotary"])
def test_joint_ctc_attention_and_time_synchronous_search_with_the_same_lm(batch: Batch, name: str) -> None:
    model, lm = make_models(name)
    joint = LabelSync({"am": 0.7, "ctc": 0.3, "lm": 0.2}, {"lm": lm}, beam_size=4, with_times=True)
    time_synchronous = CTCPrefix(lm=lm, lm_scale=0.5, beam_size=4)
    for step in (joint, time_synchronous):
        results = run(step, model, batch)
        for seq, hyps in enumerate(results):
            assert_same(run(step, model, alone(batch, seq))[0], hyps)


@torch.no_grad()
@pytest.mark.parametrize("step", [TransducerGreedy(), TransducerBeam(num_best=3), LabelSync({"am": 1.0}, num_best=2)])
def test_transducer(batch: Batch, step: SearchStep) -> None:
    torch.manual_seed(0)
    model = Transducer(make_encoder(), V, 8, 8, 8)
    results = run(step, model, batch)
    for seq, hyps in enumerate(results):
        assert_same(run(step, model, alone(batch, seq))[0], hyps)
