"""Decoders and language models: step by step equals the whole sequence, and no sequence depends on its batch."""

import pytest
import torch

from returnn_hydra.models.encoder_decoder import EncoderDecoder
from returnn_hydra.models.lstm_decoder import LSTMDecoder
from returnn_hydra.models.lstm_lm import LSTMLanguageModel
from returnn_hydra.models.pyramidal_blstm import PyramidalBLSTM
from returnn_hydra.models.transducer import Transducer
from returnn_hydra.models.transformer_decoder import TransformerDecoder
from returnn_hydra.models.transformer_lm import TransformerLanguageModel
from returnn_hydra.nn.labels import prepend

NUM_LABELS, E = 4, 6
SMALL = {"model_dim": 8, "num_layers": 2, "num_heads": 2}

LANGUAGE_MODELS = {
    "lstm": lambda: LSTMLanguageModel(NUM_LABELS, 5, 7, num_layers=2, dropout=0.1),
    "lstm with eos in the vocabulary": lambda: LSTMLanguageModel(NUM_LABELS, 5, 7, eos_id=0),
    "sinusoidal": lambda: TransformerLanguageModel(NUM_LABELS, positions="sinusoidal", **SMALL),
    "relative": lambda: TransformerLanguageModel(NUM_LABELS, positions="relative", **SMALL),
    "rotary": lambda: TransformerLanguageModel(NUM_LABELS, positions="rotary", eos_id=1, **SMALL),
    "none": lambda: TransformerLanguageModel(NUM_LABELS, positions="none", **SMALL),
}
DECODERS = {
    "lstm": lambda: LSTMDecoder(E, NUM_LABELS, 5, 7, attention_dim=3),
    "lstm with eos in the vocabulary": lambda: LSTMDecoder(E, NUM_LABELS, 5, 7, attention_dim=3, eos_id=2),
    "sinusoidal": lambda: TransformerDecoder(E, NUM_LABELS, positions="sinusoidal", **SMALL),
    "relative": lambda: TransformerDecoder(E, NUM_LABELS, positions="relative", **SMALL),
    "rotary": lambda: TransformerDecoder(E, NUM_LABELS, positions="rotary", **SMALL),
}


@pytest.fixture(params=LANGUAGE_MODELS)
def language_model(request):
    torch.manual_seed(1)
    return LANGUAGE_MODELS[request.param]().eval()


@pytest.fixture(params=DECODERS)
def decoder(request):
    torch.manual_seed(1)
    return DECODERS[request.param]().eval()


LABELS, LENGTHS = torch.tensor([[1, 3, 0, 2, 2], [2, 1, 0, 0, 0], [0, 3, 3, 0, 0]]), torch.tensor([5, 2, 3])
ENCODER_LENGTHS = torch.tensor([3, 7, 5])


def encoder_out() -> torch.Tensor:
    values = torch.randn(3, 7, E, generator=torch.Generator().manual_seed(2))
    for row, length in zip(values, ENCODER_LENGTHS, strict=True):
        row[length:] = 30.0  # must not matter
    return values


def check_steps(model, state, logits):
    """Feed `LABELS` one by one; the state handed in must not change."""
    inputs = prepend(LABELS, model.bos_id)
    for position in range(inputs.shape[1]):
        before = {key: value.clone() for key, value in state.items()}
        log_probs, new_state = model.step(inputs[:, position], state)
        assert all(torch.equal(state[key], before[key]) for key in before)
        assert all(len(value) == len(LABELS) for value in new_state.values())
        assert log_probs.shape == (len(LABELS), model.num_classes)
        torch.testing.assert_close(log_probs, logits[:, position].log_softmax(-1), atol=1e-5, rtol=1e-5)
        state = new_state


@torch.no_grad()
def test_language_model_steps_equal_the_sequence(language_model):
    logits = language_model(prepend(LABELS, language_model.bos_id), torch.full((3,), 6))
    check_steps(language_model, language_model.initial_state(3, "cpu"), logits)


@torch.no_grad()
def test_language_model_alone_equals_in_a_padded_batch(language_model):
    inputs = prepend(LABELS, language_model.bos_id)
    logits = language_model(inputs, LENGTHS + 1)
    for index, length in enumerate((LENGTHS + 1).tolist()):
        alone = language_model(inputs[index : index + 1, :length], torch.tensor([length]))
        torch.testing.assert_close(logits[index, :length], alone[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_decoder_steps_equal_the_sequence(decoder):
    logits = decoder(prepend(LABELS, decoder.bos_id), torch.full((3,), 6), encoder_out(), ENCODER_LENGTHS)
    check_steps(decoder, decoder.initial_state(encoder_out(), ENCODER_LENGTHS), logits)


@torch.no_grad()
def test_decoder_alone_equals_in_a_padded_batch(decoder):
    inputs = prepend(LABELS, decoder.bos_id)
    logits = decoder(inputs, LENGTHS + 1, encoder_out(), ENCODER_LENGTHS)
    for index, length in enumerate((LENGTHS + 1).tolist()):
        frames = int(ENCODER_LENGTHS[index])
        alone = decoder(
            inputs[index : index + 1, :length],
            torch.tensor([length]),
            encoder_out()[index : index + 1, :frames],
            torch.tensor([frames]),
        )
        torch.testing.assert_close(logits[index, :length], alone[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_what_no_step_changes_stays_the_same_object(decoder):
    """A search recognises by this what it need not copy."""
    state = decoder.initial_state(encoder_out(), ENCODER_LENGTHS)
    _, new_state = decoder.step(torch.full((3,), decoder.bos_id), state)
    constant = {key for key in state if new_state[key] is state[key]}
    assert constant == {key for key in state if key.startswith(("encoder", "memory"))}
    assert constant


@torch.no_grad()
def test_selected_hypotheses_go_on_by_themselves(decoder):
    """Rows of a state are independent: gather some, step, and get what each would have got."""
    state = decoder.initial_state(encoder_out(), ENCODER_LENGTHS)
    _, state = decoder.step(torch.full((3,), decoder.bos_id), state)
    expected, _ = decoder.step(torch.tensor([3, 1, 0]), state)
    rows = torch.tensor([2, 0, 2, 1])
    selected = {key: value.index_select(0, rows) for key, value in state.items()}
    log_probs, _ = decoder.step(torch.tensor([0, 3, 0, 1]), selected)
    torch.testing.assert_close(log_probs, expected[rows], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_boundary_label():
    assert LSTMLanguageModel(4).num_classes == 5
    assert LSTMLanguageModel(4).eos_id == LSTMLanguageModel(4).bos_id == 4
    assert LSTMLanguageModel(4, eos_id=0).num_classes == 4
    with pytest.raises(ValueError, match=r"eos_id=4: expected a label in 0\.\.3"):
        LSTMDecoder(E, 4, eos_id=4)


@torch.no_grad()
def test_location_kernel():
    """Where was attended counts as far as the kernel reaches."""
    torch.manual_seed(4)
    attention = LSTMDecoder(E, 4, attention_dim=3, location_kernel_size=5).attention
    keys, mask = attention.project(torch.randn(1, 9, E)), torch.ones(1, 9, dtype=torch.bool)
    energies = [
        attention(torch.zeros(1, 256), keys, mask, before).log()[0] for before in (torch.zeros(1, 9), one_hot(4, 9))
    ]
    changed = energies[1] - energies[0]
    assert (changed - changed[0]).abs().gt(1e-4).tolist() == [2 <= frame <= 6 for frame in range(9)]
    with pytest.raises(ValueError, match="4 frames: expected an odd number"):
        LSTMDecoder(E, 4, location_kernel_size=4)


def one_hot(index, size):
    return torch.nn.functional.one_hot(torch.tensor([index]), size).float()


@torch.no_grad()
def test_encoder_decoder_alone_equals_in_a_padded_batch(decoder):
    torch.manual_seed(3)
    model = EncoderDecoder(PyramidalBLSTM(5, hidden_dim=E // 2, reductions=[2]), decoder, ctc=True).eval()
    features, lengths = torch.randn(3, 9, 5), torch.tensor([9, 4, 7])
    inputs = prepend(LABELS, model.bos_id)
    output = model(features, lengths, inputs, LENGTHS + 1)
    assert output.encoder_lengths.tolist() == [5, 2, 4]
    for index in range(3):
        frames, size = int(lengths[index]), int(LENGTHS[index]) + 1
        alone = model(
            features[index : index + 1, :frames],
            lengths[index, None],
            inputs[index : index + 1, :size],
            torch.tensor([size]),
        )
        torch.testing.assert_close(output.logits[index, :size], alone.logits[0], atol=1e-5, rtol=0)
        encoder_frames = int(output.encoder_lengths[index])
        torch.testing.assert_close(output.ctc_logits[index, :encoder_frames], alone.ctc_logits[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_transducer_alone_in_a_batch_and_step_by_step():
    torch.manual_seed(4)
    model = Transducer(PyramidalBLSTM(5, hidden_dim=3, reductions=[2]), NUM_LABELS, 4, 5, 6).eval()
    features, lengths = torch.randn(3, 9, 5), torch.tensor([9, 4, 7])
    logits, encoder_lengths = model(features, lengths, LABELS, LENGTHS)
    assert logits.shape == (3, 5, 6, NUM_LABELS + 1)
    encoder, _ = model.encode(features, lengths)
    for index in range(3):
        frames, size, out = int(lengths[index]), int(LENGTHS[index]), int(encoder_lengths[index])
        alone, _ = model(
            features[index : index + 1, :frames],
            lengths[index, None],
            LABELS[index : index + 1, :size],
            LENGTHS[index, None],
        )
        torch.testing.assert_close(logits[index, :out, : size + 1], alone[0], atol=1e-5, rtol=0)
    state = model.initial_state(3)
    for u, labels in enumerate(prepend(LABELS, model.blank_id).T):
        predicted, state = model.predict(labels, state)
        real = u <= LENGTHS
        for t in range(5):
            expected = logits[real, t, u]
            torch.testing.assert_close(model.joint(encoder[:, t], predicted)[real], expected, atol=1e-5, rtol=1e-5)
