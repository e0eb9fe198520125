"""Attention, joint and language model steps against loops over labels."""

import pytest
import torch

from returnn_hydra.batch import Batch
from returnn_hydra.models.blstm import BLSTM
from returnn_hydra.models.encoder_decoder import EncoderDecoder
from returnn_hydra.models.lstm_decoder import LSTMDecoder
from returnn_hydra.models.lstm_lm import LSTMLanguageModel
from returnn_hydra.steps.attention import AttentionCrossEntropy, JointCTCAttention
from returnn_hydra.steps.ctc import CTC
from returnn_hydra.steps.language_model import LanguageModelCrossEntropy

LABELS = [[2, 0, 1], [1]]


@pytest.fixture
def batch() -> Batch:
    features = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(1))
    tensors = {"data": features, "classes": torch.tensor([[2, 0, 1], [1, 0, 0]])}
    return Batch(tensors, {"data": torch.tensor([9, 6]), "classes": torch.tensor([3, 1])}, ["a", "b"])


@pytest.fixture
def model() -> EncoderDecoder:
    torch.manual_seed(2)
    return EncoderDecoder(BLSTM(4, hidden_dim=3), LSTMDecoder(6, 3, 4, 5, 3), ctc=True).eval()


@torch.no_grad()
def slow_scores(model, state, labels: list[int]) -> tuple[float, int]:
    """log p of the labels and the end by feeding them one by one, and how many of them are not the best."""
    total, errors, label = 0.0, 0, model.bos_id
    for target in [*labels, model.eos_id]:
        log_probs, state = model.step(torch.tensor([label]), state)
        total += float(log_probs[0, target])
        errors += int(log_probs[0].argmax()) != target
        label = target
    return total, errors


@torch.no_grad()
def test_attention(model, batch):
    totals = []
    errors = 0
    for index, labels in enumerate(LABELS):
        frames = int(batch.lengths["data"][index])
        encoder_out, lengths = model.encode(batch["data"][index : index + 1, :frames], torch.tensor([frames]))
        total, wrong = slow_scores(model.decoder, model.decoder.initial_state(encoder_out, lengths), labels)
        totals.append(total)
        errors += wrong
    losses = AttentionCrossEntropy()(model, batch)
    assert float(losses["ce"].sum) == pytest.approx(-sum(totals), rel=1e-5)
    assert losses["ce"].count == losses["error"].count == 6
    assert int(losses["error"].sum) == errors
    scores = AttentionCrossEntropy().log_likelihoods(model, batch)
    assert scores.tolist() == pytest.approx(totals, rel=1e-5)


@torch.no_grad()
def test_joint_is_both_with_their_weights(model, batch):
    losses = JointCTCAttention(ctc_scale=0.2)(model, batch)
    attention = AttentionCrossEntropy()(model, batch)

    class CTCPart(torch.nn.Module):
        def forward(self, features, lengths):
            encoder_out, lengths = model.encode(features, lengths)
            return model.ctc_logits(encoder_out), lengths

    ctc = CTC()(CTCPart().eval(), batch)
    assert losses.keys() == {"ce", "error", "ctc", "label_error"}
    assert (losses["ce"].scale, losses["ctc"].scale) == (0.8, 0.2)
    for name, loss in {**attention, **ctc}.items():
        assert float(losses[name].sum) == pytest.approx(float(loss.sum), rel=1e-6)


@torch.no_grad()
def test_joint_needs_a_ctc_output(batch):
    model = EncoderDecoder(BLSTM(4, hidden_dim=3), LSTMDecoder(6, 3, 4, 5, 3)).eval()
    with pytest.raises(ValueError, match="no CTC output; set ctc=true"):
        JointCTCAttention()(model, batch)
    with pytest.raises(ValueError, match="ctc_scale=1"):
        JointCTCAttention(ctc_scale=1.0)


@torch.no_grad()
@pytest.mark.parametrize("eos_id", [None, 0])
def test_language_model(batch, eos_id):
    torch.manual_seed(3)
    model = LSTMLanguageModel(3, 4, 5, eos_id=eos_id).eval()
    totals = [slow_scores(model, model.initial_state(1), labels) for labels in LABELS]
    losses = LanguageModelCrossEntropy("classes")(model, batch)
    assert float(losses["ce"].sum) == pytest.approx(-sum(total for total, _ in totals), rel=1e-5)
    assert int(losses["error"].sum) == sum(errors for _, errors in totals)
    assert losses["ce"].count == 6
    scores = LanguageModelCrossEntropy("classes").log_likelihoods(model, batch)
    assert scores.tolist() == pytest.approx([total for total, _ in totals], rel=1e-5)


@torch.no_grad()
def test_the_model_must_know_every_label(batch):
    with pytest.raises(ValueError, match=r"'a': label 2 at position 0 of stream 'classes'; .* classes allow 0\.\.1$"):
        LanguageModelCrossEntropy("classes")(LSTMLanguageModel(2, eos_id=0).eval(), batch)
