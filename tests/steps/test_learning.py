"""Every label-sequence criterion with its models learns a toy language by heart: noisy frames of a few labels each."""

import pytest
import torch

from returnn_hydra.batch import Batch
from returnn_hydra.models.blstm import BLSTM
from returnn_hydra.models.conformer import Conformer
from returnn_hydra.models.ctc_model import CTCModel
from returnn_hydra.models.encoder_decoder import EncoderDecoder
from returnn_hydra.models.lstm_decoder import LSTMDecoder
from returnn_hydra.models.lstm_lm import LSTMLanguageModel
from returnn_hydra.models.transducer import Transducer as TransducerModel
from returnn_hydra.models.transformer_decoder import TransformerDecoder
from returnn_hydra.models.transformer_encoder import TransformerEncoder
from returnn_hydra.models.transformer_lm import TransformerLanguageModel
from returnn_hydra.steps.attention import AttentionCrossEntropy, JointCTCAttention
from returnn_hydra.steps.ctc import CTC
from returnn_hydra.steps.language_model import LanguageModelCrossEntropy
from returnn_hydra.steps.transducer import Transducer

NUM_LABELS, FRAMES_PER_LABEL = 4, 3
SMALL = {"model_dim": 32, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
LM_LIMIT = 0.55  # the start and the length are random: (ln 4 + ln 5) nats in 5.4 labels, the end included

CASES = {  # name: (model, step, loss, nats per label to get below)
    "ctc": (
        lambda: CTCModel(Conformer(NUM_LABELS, **SMALL), NUM_LABELS),
        CTC(target_key="labels"),
        "ctc",
        0.2,
    ),
    "attention": (
        lambda: EncoderDecoder(BLSTM(NUM_LABELS, hidden_dim=16), LSTMDecoder(32, NUM_LABELS, 16, 32, 16, dropout=0.0)),
        AttentionCrossEntropy(target_key="labels"),
        "ce",
        0.2,
    ),
    "joint transformer": (
        lambda: EncoderDecoder(
            TransformerEncoder(NUM_LABELS, **SMALL), TransformerDecoder(32, NUM_LABELS, **SMALL), ctc=True
        ),
        JointCTCAttention(target_key="labels", label_smoothing=0.0),
        "ce",
        0.2,
    ),
    "transducer": (
        lambda: TransducerModel(BLSTM(NUM_LABELS, hidden_dim=16), NUM_LABELS, 8, 16, 32, dropout=0.0),
        Transducer(target_key="labels"),
        "transducer",
        0.3,
    ),
    "lstm lm": (lambda: LSTMLanguageModel(NUM_LABELS, 16, 32), LanguageModelCrossEntropy("labels"), "ce", LM_LIMIT),
    "transformer lm": (
        lambda: TransformerLanguageModel(NUM_LABELS, **SMALL),
        LanguageModelCrossEntropy("labels"),
        "ce",
        LM_LIMIT,
    ),
}


@pytest.fixture
def batch() -> Batch:
    """16 sequences that count up modulo 4 from a random start: only the first label and the end need the features."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, 7, (16,), generator=generator)
    starts = torch.randint(0, NUM_LABELS, (16, 1), generator=generator)
    labels = (starts + torch.arange(6)) % NUM_LABELS
    frames = torch.nn.functional.one_hot(labels.repeat_interleave(FRAMES_PER_LABEL, dim=1), NUM_LABELS).float()
    noise = 0.3 * torch.randn(frames.shape, generator=generator)
    streams = {"data": frames + noise, "labels": labels.int()}
    return Batch(streams, {"data": lengths * FRAMES_PER_LABEL, "labels": lengths}, [str(index) for index in range(16)])


@pytest.mark.parametrize("name", CASES)
def test_learns(name, batch):
    torch.manual_seed(2)
    constructor, step, loss_name, limit = CASES[name]
    model = constructor().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(120):
        losses = step(model, batch)
        optimizer.zero_grad()
        sum(loss.scale * loss.mean for loss in losses.values() if not loss.as_error).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        assert float(step(model, batch)[loss_name].mean) < limit
