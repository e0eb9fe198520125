"""Every encoder: a sequence alone equals itself in a padded batch, lengths are exact, padding has no influence."""

import math

import pytest
import torch

from returnn_hydra.models.blstm import BLSTM
from returnn_hydra.models.chain import Chain
from returnn_hydra.models.conformer import Conformer
from returnn_hydra.models.conv_frontend import StridedConvFrontend, VGGFrontend
from returnn_hydra.models.ctc_model import CTCModel
from returnn_hydra.models.pyramidal_blstm import PyramidalBLSTM
from returnn_hydra.models.time_conv_encoder import TimeConvEncoder
from returnn_hydra.models.transformer_encoder import TransformerEncoder
from returnn_hydra.nn.specaugment import SpecAugment

SMALL = {"model_dim": 8, "num_layers": 2, "num_heads": 2, "dropout": 0.1}

ENCODERS = {  # name: (constructor, frames that become one, in turn)
    "blstm": (lambda: BLSTM(6, 5, hidden_dim=4, num_layers=2, dropout=0.1, input_noise=0.1), [1]),
    "blstm with input norm": (lambda: BLSTM(6, 5, hidden_dim=4, input_norm=True), [1]),
    "blstm without output layer": (lambda: BLSTM(6, hidden_dim=4), [1]),
    "pyramidal max": (lambda: PyramidalBLSTM(6, 5, hidden_dim=4, reductions=[2, 3], dropout=0.1), [2, 3]),
    "pyramidal concat": (lambda: PyramidalBLSTM(6, 5, hidden_dim=4, reductions=[3, 2], reduction="concat"), [3, 2]),
    "vgg": (lambda: VGGFrontend(6, 5, channels=[2, 3], time_pooling=[2, 3]), [2, 3]),
    "vgg without time pooling": (lambda: VGGFrontend(6, 5, [2], [1], [2]), [1]),
    "strided 1": (lambda: StridedConvFrontend(6, 5, channels=2, factor=1), [1]),
    "strided 4": (lambda: StridedConvFrontend(6, 5, channels=2, factor=4), [2, 2]),
    "transformer sinusoidal": (lambda: TransformerEncoder(6, 5, positions="sinusoidal", **SMALL), [1]),
    "transformer relative": (lambda: TransformerEncoder(6, 5, positions="relative", **SMALL), [1]),
    "transformer rotary 2": (lambda: TransformerEncoder(6, positions="rotary", subsampling=2, **SMALL), [2]),
    "transformer none": (lambda: TransformerEncoder(6, 5, positions="none", **SMALL), [1]),
    "conformer": (lambda: Conformer(6, 5, kernel_size=5, **SMALL), [1]),
    "conformer 4": (lambda: Conformer(6, 5, kernel_size=3, subsampling=4, **SMALL), [2, 2]),
    "conformer layer norm": (lambda: Conformer(6, kernel_size=7, conv_norm="layer", positions="rotary", **SMALL), [1]),
    "time conv": (lambda: TimeConvEncoder(6, 5, hidden_dim=4, strides=[2, 1, 3], kernel_size=5, dropout=0.1), [2, 3]),
    "time conv without output layer": (lambda: TimeConvEncoder(6, hidden_dim=4, strides=[1], kernel_size=3), [1]),
    "ctc model": (lambda: CTCModel(PyramidalBLSTM(6, hidden_dim=3, reductions=[2]), num_labels=4, dropout=0.1), [2]),
    "chain": (
        lambda: Chain([SpecAugment(2, 3, 0.5, 1, 2), VGGFrontend(6, 4, [2], [2], [2]), BLSTM(4, 5, hidden_dim=3)]),
        [2],
    ),
}
LENGTHS = [13, 1, 8, 5, 12]


@pytest.fixture(params=ENCODERS)
def encoder_and_factors(request):
    torch.manual_seed(1)
    constructor, factors = ENCODERS[request.param]
    encoder = constructor()
    with torch.no_grad():
        for name, buffer in encoder.named_buffers():  # batch norm that has seen something
            if name.endswith("running_mean"):
                buffer.normal_()
    return encoder, factors


def padded_batch(garbage: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    features = torch.randn(len(LENGTHS), max(LENGTHS), 6, generator=torch.Generator().manual_seed(2))
    for row, length in zip(features, LENGTHS, strict=True):
        row[length:] = garbage
    return features, torch.tensor(LENGTHS)


def test_alone_equals_in_a_padded_batch(encoder_and_factors):
    encoder, factors = encoder_and_factors
    encoder.eval()
    features, lengths = padded_batch()
    outputs, out_lengths = encoder(features, lengths)
    assert outputs.shape[1] == int(out_lengths.max())
    assert outputs.shape[2] == encoder.output_dim
    assert torch.isfinite(outputs).all()
    for index, length in enumerate(LENGTHS):
        expected_length = length
        for factor in factors:
            expected_length = math.ceil(expected_length / factor)
        alone, alone_lengths = encoder(features[index : index + 1, :length], torch.tensor([length]))
        assert alone_lengths.tolist() == [expected_length] == [int(out_lengths[index])]
        assert alone.shape[1] == expected_length
        torch.testing.assert_close(outputs[index, :expected_length], alone[0], atol=1e-5, rtol=0)


def test_padding_has_no_influence(encoder_and_factors):
    encoder, _ = encoder_and_factors
    outputs, gradients = [], []
    for training in (False, True):  # training too: dropout is the same for the same seed
        encoder.train(training)
        for garbage in (0.0, 20.0):
            torch.manual_seed(3)
            encoder.zero_grad()
            values, out_lengths = encoder(*padded_batch(garbage))
            real = torch.cat([row[:n] for row, n in zip(values, out_lengths, strict=True)])
            real.square().sum().backward()
            outputs.append(real.detach())
            gradients.append(torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None]))
    for clean, dirty in ((0, 1), (2, 3)):
        torch.testing.assert_close(outputs[clean], outputs[dirty], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradients[clean], gradients[dirty], atol=1e-4, rtol=1e-4)


def test_every_parameter_gets_a_gradient(encoder_and_factors):
    encoder, _ = encoder_and_factors
    encoder.train()
    outputs, _ = encoder(*padded_batch())
    (outputs * torch.randn_like(outputs)).sum().backward()
    without = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.parametrize(
    ("constructor", "message"),
    [
        (lambda: VGGFrontend(6, 5, channels=[1, 2], time_pooling=[2], feature_pooling=[2]), "as many of each"),
        (lambda: StridedConvFrontend(6, 5, factor=3), "power of two"),
        (lambda: TransformerEncoder(6, positions="rotation", **SMALL), "expected one of sinusoidal, relative"),
        (lambda: Conformer(6, conv_norm="group", **SMALL), "expected one of batch, layer"),
        (lambda: Conformer(6, kernel_size=4, **SMALL), "odd"),
        (lambda: TimeConvEncoder(6, kernel_size=4), "odd"),
        (lambda: Conformer(6, model_dim=10, num_heads=4), "even number of features per head"),
        (lambda: Conformer(6, positions="sinusoidal"), "expected one of none, relative, rotary"),
        (lambda: PyramidalBLSTM(6, reduction="mean", hidden_dim=2)(*padded_batch()), "expected concat or max"),
    ],
)
def test_wrong_options(constructor, message):
    with pytest.raises(ValueError, match=message):
        constructor()
