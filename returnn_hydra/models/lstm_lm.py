"""LSTM language model.

Legend: B sequences, N hypotheses, S labels, H hidden units, L layers, V classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from returnn_hydra.models.vocabulary import boundary_label
from returnn_hydra.nn.lstm import LSTM


class LSTMLanguageModel(nn.Module):
    """log p(next label | labels before), by an LSTM (Sundermeyer et al. 2012, LSTM Networks for LM).

    Args:
        num_labels: of the vocabulary.
        embedding_dim: features of a label.
        hidden_dim: H.
        num_layers: L.
        dropout: on embeddings and layer outputs, in training.
        eos_id: sentence end of the vocabulary, also fed as begin; None: a further class, `num_labels`.
    """

    def __init__(
        self,
        num_labels: int,
        embedding_dim: int = 128,
        hidden_dim: int = 256,
        num_layers: int = 1,
        dropout: float = 0.0,
        eos_id: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.eos_id = boundary_label(num_labels, eos_id)
        self.bos_id = self.eos_id
        self.embedding = nn.Embedding(self.num_classes, embedding_dim)
        self.lstm = LSTM(embedding_dim, hidden_dim, num_layers, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_dim, self.num_classes)

    def forward(self, labels: Tensor, lengths: Tensor) -> Tensor:
        """Logits of the label behind each: (B, S), (B,) -> (B, S, V). The first label is `bos_id`."""
        hidden, _ = self.lstm(self.dropout(self.embedding(labels)), lengths)
        return self.output(self.dropout(hidden))

    def initial_state(self, num_seqs: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The state before `bos_id`: `h` and `c`, (N, L, H)."""
        zeros = torch.zeros(
            num_seqs, self.lstm.num_layers, self.lstm.hidden_size, device=device, dtype=self.output.weight.dtype
        )
        return {"h": zeros, "c": zeros}

    def step(self, labels: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Labels (N,) and the state before them -> log probabilities (N, V) of the next ones, and the new state."""
        before = (state["h"].transpose(0, 1).contiguous(), state["c"].transpose(0, 1).contiguous())
        hidden, (h, c) = self.lstm.step(self.dropout(self.embedding(labels)), before)
        log_probs = self.output(self.dropout(hidden)).log_softmax(-1)
        return log_probs, {"h": h.transpose(0, 1), "c": c.transpose(0, 1)}
