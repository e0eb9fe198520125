"""Every step: the losses of a padded batch are the sums of those of its sequences alone."""

import pytest
import torch

from returnn_hydra.batch import Batch
from returnn_hydra.models.blstm import BLSTM
from returnn_hydra.models.conformer import Conformer
from returnn_hydra.models.encoder_decoder import EncoderDecoder
from returnn_hydra.models.lstm_decoder import LSTMDecoder
from returnn_hydra.models.lstm_lm import LSTMLanguageModel
from returnn_hydra.models.pyramidal_blstm import PyramidalBLSTM
from returnn_hydra.models.transducer import Transducer as TransducerModel
from returnn_hydra.models.transformer_decoder import TransformerDecoder
from returnn_hydra.models.transformer_encoder import TransformerEncoder
from returnn_hydra.models.transformer_lm import TransformerLanguageModel
from returnn_hydra.steps.attention import AttentionCrossEntropy, JointCTCAttention
from returnn_hydra.steps.cross_entropy import CrossEntropy
from returnn_hydra.steps.ctc import CTC
from returnn_hydra.steps.language_model import LanguageModelCrossEntropy
from returnn_hydra.steps.log_likelihood import LogLikelihood
from returnn_hydra.steps.posteriors import Posteriors
from returnn_hydra.steps.transducer import Transducer

F, LABELS = 5, 4
SMALL = {"model_dim": 8, "num_layers": 1, "num_heads": 2}


def pyramid() -> PyramidalBLSTM:
    return PyramidalBLSTM(F, hidden_dim=4, reductions=[2])


def attention_model() -> EncoderDecoder:
    return EncoderDecoder(pyramid(), LSTMDecoder(8, LABELS, 3, 6, 4), ctc=True)


def transformer_model() -> EncoderDecoder:
    encoder = TransformerEncoder(F, subsampling=2, **SMALL)
    return EncoderDecoder(encoder, TransformerDecoder(8, LABELS, **SMALL), ctc=True)


def ctc_model() -> Conformer:
    return Conformer(F, LABELS + 1, subsampling=2, **SMALL)


def transducer_model() -> TransducerModel:
    return TransducerModel(pyramid(), LABELS, 3, 4, 6)


STEPS = {  # name: (model, step); streams: data, labels, frames (a class per frame), class (one per sequence)
    "frames": (lambda: BLSTM(F, LABELS, hidden_dim=3), CrossEntropy(target_key="frames", label_smoothing=0.1)),
    "sequence": (lambda: Conformer(F, LABELS, **SMALL), CrossEntropy(target_key="class")),
    "sequence, subsampled": (lambda: PyramidalBLSTM(F, LABELS, 3), CrossEntropy(target_key="class")),
    "ctc": (ctc_model, CTC(target_key="labels")),
    "ctc, blank 0": (ctc_model, CTC(target_key="shifted", blank=0, skip_too_long=True)),
    "attention": (attention_model, AttentionCrossEntropy(target_key="labels", label_smoothing=0.1)),
    "transformer": (transformer_model, AttentionCrossEntropy(target_key="labels")),
    "joint": (attention_model, JointCTCAttention(target_key="labels")),
    "joint transformer": (transformer_model, JointCTCAttention(target_key="labels", skip_too_long=True)),
    "lstm lm": (lambda: LSTMLanguageModel(LABELS, 4, 5), LanguageModelCrossEntropy("labels")),
    "transformer lm": (lambda: TransformerLanguageModel(LABELS, **SMALL), LanguageModelCrossEntropy("labels", 0.1)),
    "transducer": (transducer_model, Transducer(target_key="labels")),
}
FORWARD_STEPS = {
    "posteriors": (lambda: PyramidalBLSTM(F, LABELS, 3), Posteriors()),
    "posteriors by sequence": (ctc_model, Posteriors(per_sequence=True, log=False)),
    "frames": (lambda: BLSTM(F, LABELS, hidden_dim=3), LogLikelihood(CrossEntropy(target_key="frames"))),
    "ctc": (ctc_model, LogLikelihood(CTC(target_key="labels"))),
    "attention": (attention_model, LogLikelihood(AttentionCrossEntropy(target_key="labels"))),
    "joint": (transformer_model, LogLikelihood(JointCTCAttention(target_key="labels"))),
    "lm": (lambda: TransformerLanguageModel(LABELS, **SMALL), LogLikelihood(LanguageModelCrossEntropy("labels"))),
    "transducer": (transducer_model, LogLikelihood(Transducer(target_key="labels"))),
}
LENGTHS = {"data": [11, 5, 14, 8], "labels": [4, 1, 2, 0]}


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "data": torch.randn(4, 14, F, generator=generator),
        "labels": torch.randint(0, LABELS, (4, 4), generator=generator, dtype=torch.int32),
        "frames": torch.randint(0, LABELS, (4, 14), generator=generator, dtype=torch.int32),
        "class": torch.randint(0, LABELS, (4, 1), generator=generator, dtype=torch.int32),
    }
    lengths = {name: torch.tensor(value) for name, value in LENGTHS.items()}
    lengths |= {"frames": lengths["data"], "class": torch.ones(4, dtype=torch.long), "shifted": lengths["labels"]}
    tensors["shifted"] = tensors["labels"] + 1
    for name, tensor in tensors.items():
        for row, length in zip(tensor, lengths[name], strict=True):
            row[length:] = 0
    return Batch(tensors, lengths, ["a", "b", "c", "d"])


@pytest.mark.parametrize("name", STEPS)
@torch.no_grad()
def test_losses_are_the_sums_of_the_sequences_alone(name, batch):
    torch.manual_seed(2)
    constructor, step = STEPS[name]
    model = constructor().eval()
    losses = step(model, batch)
    alone = [step(model, batch.select(index, index + 1)) for index in range(4) if LENGTHS["labels"][index] > 0]
    empty = step(model, batch.select(3, 4))  # a sequence without labels; its count is 0, or 1 to divide by
    for key, loss in losses.items():
        total = sum(float(one[key].sum) for one in alone) + float(empty[key].sum)
        assert float(loss.sum) == pytest.approx(total, abs=1e-5, rel=1e-5)
        count = sum(float(one[key].count) for one in alone)
        if key not in ("ctc", "label_error", "transducer"):
            count += float(empty[key].count)
        assert float(loss.count) == count
        assert torch.isfinite(loss.sum)


@pytest.mark.parametrize("name", STEPS)
def test_training_reaches_every_parameter(name, batch):
    torch.manual_seed(3)
    constructor, step = STEPS[name]
    model = constructor().train()
    losses = step(model, batch)
    sum(loss.scale * loss.mean for loss in losses.values() if not loss.as_error).backward()
    without = {
        key for key, value in model.named_parameters() if value.grad is None or not torch.isfinite(value.grad).all()
    }
    if isinstance(step, AttentionCrossEntropy):
        without -= {"ctc_output.weight", "ctc_output.bias"}
    assert without == set()


@pytest.mark.parametrize("name", FORWARD_STEPS)
def test_outputs_are_those_of_the_sequences_alone(name, batch):
    torch.manual_seed(4)
    constructor, step = FORWARD_STEPS[name]
    model = constructor().eval()
    outputs = {key: output.per_sequence() for key, output in step(model, batch).items()}
    for index in range(4):
        for key, output in step(model, batch.select(index, index + 1)).items():
            assert outputs[key][index] == pytest.approx(output.per_sequence()[0], abs=1e-5)
