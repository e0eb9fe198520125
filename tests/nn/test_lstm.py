"""The padded LSTM against torch's over packed sequences: outputs, gradients, states, parameter names."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from returnn_hydra.nn.lstm import LSTM


def run_packed(lstm: nn.LSTM, features: Tensor, lengths: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    packed = pack_padded_sequence(features, lengths, batch_first=True, enforce_sorted=False)
    outputs, state = lstm(packed)
    return pad_packed_sequence(outputs, batch_first=True, total_length=features.shape[1])[0], state


def pair(dtype: torch.dtype, **options) -> tuple[LSTM, nn.LSTM]:
    """Ours and torch's with the same parameters."""
    ours = LSTM(5, 7, **options).to(dtype)
    reference = nn.LSTM(5, 7, batch_first=True, **options).to(dtype)
    reference.load_state_dict(ours.state_dict())
    return ours, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_outputs_and_gradients_equal_packed(dtype, bidirectional, num_layers):
    torch.manual_seed(1)
    ours, reference = pair(dtype, num_layers=num_layers, bidirectional=bidirectional)
    lengths = torch.tensor([4, 9, 1, 6])
    features = torch.randn(4, 9, 5, dtype=dtype)
    inputs, reference_inputs = features.clone().requires_grad_(), features.clone().requires_grad_()
    outputs, out_lengths = ours(inputs, lengths)
    expected, _ = run_packed(reference, reference_inputs, lengths)
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-13}[dtype]
    torch.testing.assert_close(outputs, expected, atol=tolerance, rtol=0)
    assert torch.equal(out_lengths, lengths)

    weights = torch.randn_like(outputs)
    (outputs * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(inputs.grad, reference_inputs.grad, atol=10 * tolerance, rtol=0)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad, atol=50 * tolerance, rtol=1e-5)


def test_padding_has_zero_output_and_no_influence():
    torch.manual_seed(2)
    lstm = LSTM(5, 7, num_layers=2, bidirectional=True)
    lengths = torch.tensor([3, 6])
    features = torch.randn(2, 6, 5)
    garbage = features.clone()
    garbage[0, 3:] = 1e3
    outputs, _ = lstm(features, lengths)
    torch.testing.assert_close(lstm(garbage, lengths)[0], outputs, atol=1e-6, rtol=0)
    assert outputs[0, 3:].abs().max() == 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=5), st.integers(0, 3))
def test_any_lengths(lengths, extra_padding):
    ours, reference = pair(torch.float64, num_layers=2, bidirectional=True)
    features = torch.randn(len(lengths), max(lengths) + extra_padding, 5, dtype=torch.float64)
    expected, _ = run_packed(reference, features, torch.tensor(lengths))
    torch.testing.assert_close(ours(features, torch.tensor(lengths))[0], expected, atol=1e-13, rtol=0)


def test_an_empty_sequence_gives_zeros():
    torch.manual_seed(3)
    lstm = LSTM(5, 7, bidirectional=True)
    features, lengths = torch.randn(2, 4, 5), torch.tensor([0, 4])
    outputs, _ = lstm(features, lengths)
    with_state, (h, c) = lstm.forward_with_state(features, lengths)
    assert outputs[0].abs().max() == 0
    torch.testing.assert_close(outputs, with_state, atol=1e-6, rtol=0)
    assert h[:, 0].abs().max() == 0
    assert c[:, 0].abs().max() == 0


@pytest.mark.parametrize("bidirectional", [True, False])
def test_final_states_equal_packed(bidirectional):
    torch.manual_seed(4)
    ours, reference = pair(torch.float32, num_layers=2, bidirectional=bidirectional)
    features, lengths = torch.randn(3, 6, 5), torch.tensor([2, 6, 5])
    outputs, state = ours.forward_with_state(features, lengths)
    _, expected_state = run_packed(reference, features, lengths)
    torch.testing.assert_close(outputs, ours(features, lengths)[0], atol=1e-6, rtol=0)
    for value, expected in zip(state, expected_state, strict=True):
        torch.testing.assert_close(value, expected)


def test_steps_equal_the_whole_sequence():
    torch.manual_seed(5)
    lstm = LSTM(5, 7, num_layers=2)
    features = torch.randn(3, 4, 5)
    state = (torch.zeros(2, 3, 7), torch.zeros(2, 3, 7))
    outputs = []
    for frame in range(4):
        output, state = lstm.step(features[:, frame], state)
        outputs.append(output)
    torch.testing.assert_close(torch.stack(outputs, 1), lstm(features, torch.full((3,), 4))[0], atol=1e-6, rtol=0)


def test_parameters_have_torchs_names_and_shapes():
    ours, reference = pair(torch.float32, num_layers=2, bidirectional=True)
    shapes = {name: value.shape for name, value in reference.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes
    ours.load_state_dict(reference.state_dict())


def test_dropout_is_between_layers_and_only_in_training():
    torch.manual_seed(6)
    lstm = LSTM(5, 7, num_layers=2, dropout=0.5)
    features, lengths = torch.randn(1, 4, 5), torch.tensor([4])
    assert not torch.equal(lstm(features, lengths)[0], lstm(features, lengths)[0])
    lstm.eval()
    assert torch.equal(lstm(features, lengths)[0], lstm(features, lengths)[0])
    single = LSTM(5, 7, num_layers=1, dropout=0.5)
    assert torch.equal(single(features, lengths)[0], single(features, lengths)[0])


def test_another_number_of_features_is_refused():
    with pytest.raises(ValueError, match="LSTM: 6 features, but input_size=5"):
        LSTM(5, 7, bidirectional=True)(torch.zeros(2, 3, 6), torch.tensor([3, 2]))
