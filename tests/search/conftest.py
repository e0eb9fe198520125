"""Small random models and brute-force references for the searches.

Legend: N hypotheses, V labels, T frames, F features.
"""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from returnn_hydra.search.scorer import Encoded, LabelScorer


class ToyDecoder(nn.Module):
    """A GRU cell with dot-product attention; keeps its keys unchanged in the state."""

    def __init__(self, vocab_size: int, dim: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, dim)
        self.cell = nn.GRUCell(2 * dim, dim)
        self.out = nn.Linear(2 * dim, vocab_size)

    def initial_state(self, encoder_out: Tensor, encoder_lengths: Tensor) -> dict[str, Tensor]:
        mask = torch.arange(encoder_out.shape[1])[None] < encoder_lengths[:, None]
        hidden = torch.zeros(len(encoder_out), self.cell.hidden_size)
        return {"hidden": hidden, "context": hidden, "keys": encoder_out, "mask": mask}

    def step(self, labels: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = self.cell(torch.cat([self.embed(labels), state["context"]], 1), state["hidden"])
        energy = torch.einsum("nd,ntd->nt", hidden, state["keys"]).masked_fill(~state["mask"], -torch.inf)
        context = torch.einsum("nt,ntd->nd", energy.softmax(1), state["keys"])
        log_probs = (3 * self.out(torch.cat([hidden, context], 1))).log_softmax(1)
        return log_probs, {**state, "hidden": hidden, "context": context}


class ToyLanguageModel(nn.Module):
    """An LSTM cell with a tuple as state."""

    def __init__(self, vocab_size: int, dim: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, dim)
        self.cell = nn.LSTMCell(dim, dim)
        self.out = nn.Linear(dim, vocab_size)

    def initial_state(self, num_seqs: int, device: torch.device) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros(num_seqs, self.cell.hidden_size, device=device)
        return zeros, zeros

    def step(self, labels: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hidden, cell = self.cell(self.embed(labels), state)
        return (4 * self.out(hidden)).log_softmax(1), (hidden, cell)


class ToyTransducer(nn.Module):
    """A GRU predictor and a linear joint network; the blank is the last class."""

    def __init__(self, num_labels: int, dim: int = 8) -> None:
        super().__init__()
        self.blank_id = num_labels
        self.embed = nn.Embedding(num_labels + 1, dim)
        self.cell = nn.GRUCell(dim, dim)
        self.out = nn.Linear(dim, num_labels + 1)

    def initial_state(self, num_seqs: int, device: torch.device) -> dict[str, Tensor]:
        return {"hidden": torch.zeros(num_seqs, self.cell.hidden_size, device=device)}

    def predict(self, labels: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = self.cell(self.embed(labels), state["hidden"])
        return hidden, {"hidden": hidden}

    def joint(self, encoder_out: Tensor, predicted: Tensor) -> Tensor:
        return 2 * self.out(encoder_out + 3 * predicted)


def random_encoded(num_seqs: int, num_frames: int, num_classes: int, dim: int = 8, seed: int = 0) -> Encoded:
    """Random encoder outputs and CTC posteriors of sequences of different lengths, the longest first; NaN in the
    padding.
    """
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([max(1, num_frames - b) for b in range(num_seqs)])
    padding = torch.arange(num_frames)[None] >= lengths[:, None]
    encoder = torch.randn(num_seqs, num_frames, dim, generator=rng).masked_fill(padding[..., None], 0.0)
    ctc = (2 * torch.randn(num_seqs, num_frames, num_classes, generator=rng)).double().log_softmax(-1)
    return Encoded(lengths, encoder, ctc.masked_fill(padding[..., None], torch.nan))


def part(encoded: Encoded, seqs: list[int], *, extra_frames: int = 0, cut: bool = False) -> Encoded:
    """Some sequences of a batch, with more or less padding."""
    lengths = encoded.lengths[seqs]
    size = int(lengths.max())

    def pick(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        tensor = tensor[seqs][:, :size] if cut else tensor[seqs]
        return nn.functional.pad(tensor, (0, 0, 0, extra_frames), value=0.25)

    return Encoded(lengths, pick(encoded.encoder), pick(encoded.ctc_log_probs))


def sequence_score(scorer: LabelScorer, encoded: Encoded, labels: list[int], bos: int) -> float:
    """Sum of the scores of `labels` for the only sequence of `encoded`, one hypothesis at a time, without `select`."""
    state = scorer.initial_state(encoded)
    total, last = 0.0, bos
    for label in labels:
        log_probs, state = scorer.score(torch.tensor([[last]]), state)
        total += float(log_probs[0, 0, label])
        last = label
    return total


def all_label_sequences(labels: list[int], longest: int) -> list[list[int]]:
    return [list(seq) for n in range(longest + 1) for seq in itertools.product(labels, repeat=n)]


def collapse(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    """The labels of a CTC path."""
    return tuple(label for label, _ in itertools.groupby(path) if label != blank)


def log_sum(scores: list[float]) -> float:
    best = max(scores)
    return best if math.isinf(best) else best + math.log(sum(math.exp(score - best) for score in scores))


@pytest.fixture
def toy() -> SimpleNamespace:
    return SimpleNamespace(
        Decoder=ToyDecoder,
        LanguageModel=ToyLanguageModel,
        Transducer=ToyTransducer,
        encoded=random_encoded,
        part=part,
        sequence_score=sequence_score,
        all_label_sequences=all_label_sequences,
        collapse=collapse,
        log_sum=log_sum,
    )
