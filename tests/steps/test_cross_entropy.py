"""Cross entropy, posteriors and log likelihood against explicit loops over sequences and frames."""

import math

import pytest
import torch
from torch import nn

from returnn_hydra.batch import Batch
from returnn_hydra.models.blstm import BLSTM
from returnn_hydra.steps.cross_entropy import CrossEntropy
from returnn_hydra.steps.log_likelihood import LogLikelihood
from returnn_hydra.steps.posteriors import Posteriors

LENGTHS = [4, 2]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(1)
    return BLSTM(input_dim=3, output_dim=5, hidden_dim=4).eval()


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(2))


def make_batch(features: torch.Tensor, classes: torch.Tensor, class_lengths: list[int] | None) -> Batch:
    lengths = {"data": torch.tensor(LENGTHS)}
    if class_lengths is not None:
        lengths["classes"] = torch.tensor(class_lengths)
    return Batch({"data": features, "classes": classes}, lengths, ["a", "b"])


@pytest.fixture
def frame_batch(features) -> Batch:
    return make_batch(features, torch.tensor([[0, 4, 2, 2], [1, 3, 0, 0]], dtype=torch.int32), LENGTHS)


def log_probs_alone(model: nn.Module, batch: Batch, index: int) -> torch.Tensor:
    length = LENGTHS[index]
    logits, _ = model(batch["data"][index : index + 1, :length], torch.tensor([length]))
    return logits[0].detach().double().log_softmax(-1)


@torch.no_grad()
def test_frame_wise_equals_a_loop(model, frame_batch):
    losses = CrossEntropy()(model, frame_batch)
    nats, errors = 0.0, 0
    for index, length in enumerate(LENGTHS):
        log_probs = log_probs_alone(model, frame_batch, index)
        for frame in range(length):
            target = int(frame_batch["classes"][index, frame])
            nats -= float(log_probs[frame, target])
            errors += int(log_probs[frame].argmax()) != target
    assert float(losses["ce"].sum) == pytest.approx(nats, rel=1e-5)
    assert losses["ce"].count == losses["error"].count == 6
    assert int(losses["error"].sum) == errors
    assert losses["error"].as_error
    assert not losses["ce"].as_error


@torch.no_grad()
@pytest.mark.parametrize(("classes", "class_lengths"), [([3, 1], None), ([[3], [1]], [1, 1])])
def test_one_target_per_sequence(model, features, classes, class_lengths):
    batch = make_batch(features, torch.tensor(classes), class_lengths)
    losses = CrossEntropy()(model, batch)
    expected = 0.0
    for index, target in enumerate([3, 1]):
        length = LENGTHS[index]
        logits, _ = model(features[index : index + 1, :length], torch.tensor([length]))
        expected -= float(logits[0].detach().mean(0).log_softmax(-1)[target])
    assert float(losses["ce"].sum) == pytest.approx(expected, rel=1e-5)
    assert losses["ce"].count == 2
    log_likelihood = LogLikelihood(CrossEntropy())(model, batch)["log_likelihood"].tensor
    assert log_likelihood.shape == (2,)
    assert float(log_likelihood.sum()) == pytest.approx(-expected, rel=1e-5)


@torch.no_grad()
def test_log_likelihood_sums_the_frames(model, frame_batch):
    output = LogLikelihood(CrossEntropy())(model, frame_batch)["log_likelihood"]
    for index, length in enumerate(LENGTHS):
        targets = frame_batch["classes"][index, :length].long()
        expected = log_probs_alone(model, frame_batch, index).gather(1, targets[:, None]).sum()
        assert float(output.tensor[index]) == pytest.approx(float(expected), rel=1e-5)


def test_posteriors(model, frame_batch):
    output = Posteriors()(model, frame_batch)["output"]
    rows = output.per_sequence()
    assert [len(row) for row in rows] == LENGTHS
    for index, row in enumerate(rows):
        expected = log_probs_alone(model, frame_batch, index).detach().float().numpy()
        assert row == pytest.approx(expected, abs=1e-5)
    probabilities = Posteriors(log=False)(model, frame_batch)["output"].tensor
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 4))
    by_sequence = Posteriors(per_sequence=True)(model, frame_batch)["output"]
    assert by_sequence.tensor.shape == (2, 5)
    assert by_sequence.lengths is None


@torch.no_grad()
def test_label_smoothing_only_in_training(model, frame_batch):
    plain, smoothed = CrossEntropy(), CrossEntropy(label_smoothing=0.2)
    assert float(plain(model, frame_batch)["ce"].sum) == float(smoothed(model, frame_batch)["ce"].sum)
    model.train()
    log_probs = [log_probs_alone(model, frame_batch, index) for index in range(2)]
    uniform = -sum(float(values.mean(-1).sum()) for values in log_probs)
    expected = 0.8 * float(plain(model, frame_batch)["ce"].sum) + 0.2 * uniform
    assert float(smoothed(model, frame_batch)["ce"].sum) == pytest.approx(expected, rel=1e-5)


def test_a_wrong_number_of_targets_names_the_sequence(model, features):
    batch = make_batch(features, torch.zeros(2, 4, dtype=torch.long), [4, 1])
    with pytest.raises(ValueError, match=r"'b'.*'classes' has 1 targets and the model 2 outputs"):
        CrossEntropy()(model, batch)


def test_a_wrong_class_names_the_sequence(model, features):
    batch = make_batch(features, torch.tensor([[0, 4, 2, 2], [1, 5, 0, 0]]), LENGTHS)
    with pytest.raises(ValueError, match=r"'b': target 5 in stream 'classes'; the model's classes are 0\.\.4"):
        CrossEntropy()(model, batch)


def test_gradient_does_not_see_the_padding(model, features, frame_batch):
    garbage = features.clone()
    garbage[1, 2:] = 50.0
    other = make_batch(garbage, frame_batch["classes"], LENGTHS)
    gradients = []
    for batch in (frame_batch, other):
        model.zero_grad()
        CrossEntropy()(model, batch)["ce"].sum.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
    assert math.isfinite(sum(float(gradient.abs().sum()) for gradient in gradients[0]))
