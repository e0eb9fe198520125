"""Transducer: an encoder, a label predictor and a joint network.

Legend: B sequences, N hypotheses, T frames, T' encoder frames, F input features, E encoder features, U labels, H hidden
units of the predictor, J joint features, V classes (blank included).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from returnn_hydra.nn.labels import prepend
from returnn_hydra.nn.lstm import LSTM


class Transducer(nn.Module):
    """p(label or blank | frame, labels before) (Graves 2012, Sequence Transduction with Recurrent Neural Networks; sum
    and tanh in the joint network: Graves et al. 2013, Speech Recognition with Deep Recurrent Neural Networks).

    Blank is the last class, `num_labels`; it is also what the predictor sees before the first label.

    Args:
        encoder: (B, T, F), (B,) -> (B, T', E), (B,).
        num_labels: of the vocabulary; V = num_labels + 1.
        embedding_dim: features of a label.
        hidden_dim: H.
        joint_dim: J.
        dropout: on embeddings and the predictor's outputs, in training.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_labels: int,
        embedding_dim: int = 64,
        hidden_dim: int = 128,
        joint_dim: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.blank_id = num_labels
        self.num_classes = num_labels + 1
        self.embedding = nn.Embedding(self.num_classes, embedding_dim)
        self.lstm = LSTM(embedding_dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.encoder_part = nn.Linear(int(encoder.output_dim), joint_dim)  # type: ignore[arg-type]
        self.label_part = nn.Linear(hidden_dim, joint_dim, bias=False)
        self.output = nn.Linear(joint_dim, self.num_classes)

    def encode(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) -> (B, T', E), (B,)."""
        return self.encoder(features, lengths)

    def forward(
        self, features: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits of all nodes of the lattice, and the encoder's lengths.

        Args:
            features: (B, T, F).
            lengths: (B,).
            labels: (B, U).
            label_lengths: (B,).

        Returns:
            (B, T', U+1, V), and (B,).
        """
        encoder_out, encoder_lengths = self.encode(features, lengths)
        embedded = self.dropout(self.embedding(prepend(labels, self.blank_id)))
        predicted, _ = self.lstm(embedded, label_lengths + 1)
        return self.joint(encoder_out[:, :, None], self.dropout(predicted)[:, None]), encoder_lengths

    def joint(self, encoder_out: Tensor, predicted: Tensor) -> Tensor:
        """Logits: (..., E) and (..., H), which broadcast -> (..., V)."""
        return self.output((self.encoder_part(encoder_out) + self.label_part(predicted)).tanh())

    def initial_state(self, num_seqs: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The predictor before its first label, which is `blank_id`: `h` and `c`, (N, 1, H)."""
        zeros = torch.zeros(num_seqs, 1, self.lstm.hidden_size, device=device, dtype=self.output.weight.dtype)
        return {"h": zeros, "c": zeros}

    def predict(self, labels: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The predictor's outputs behind labels (N,), (N, H), and its new state; what `joint` needs for each frame."""
        before = (state["h"].transpose(0, 1).contiguous(), state["c"].transpose(0, 1).contiguous())
        predicted, (h, c) = self.lstm.step(self.dropout(self.embedding(labels)), before)
        return self.dropout(predicted), {"h": h.transpose(0, 1), "c": c.transpose(0, 1)}
