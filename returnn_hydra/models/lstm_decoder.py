"""LSTM decoder with location-aware attention to an encoder.

Legend: B sequences, N hypotheses, S labels, T encoder frames, E encoder features, A attention features, H hidden units,
M embedding features, V classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from returnn_hydra.batch import sequence_mask
from returnn_hydra.models.vocabulary import boundary_label


class LSTMDecoder(nn.Module):
    """log p(next label | labels before, encoder), as in RWTH's attention models (Zeyer et al. 2018, Improved Training
    of End-to-end Attention Models for Speech Recognition, section 2).

    For label y before, with context c and attention weights a of the encoder's outputs h:
    s = LSTM([y, c], s);  a = softmax over frames of attention(s, h, sum of all a before);  c = sum of a * h;
    p = softmax(W tanh(readout [s, y, c])).

    Args:
        encoder_dim: E.
        num_labels: of the vocabulary.
        embedding_dim: M.
        hidden_dim: H; also of the readout.
        attention_dim: A.
        location_kernel_size: frames around each that its attention sees the weights before of, odd; wide enough for the
            way from one label to the next.
        dropout: on embeddings and the readout, in training.
        eos_id: sentence end of the vocabulary, also fed as begin; None: a further class, `num_labels`.
    """

    def __init__(
        self,
        encoder_dim: int,
        num_labels: int,
        embedding_dim: int = 128,
        hidden_dim: int = 256,
        attention_dim: int = 128,
        location_kernel_size: int = 15,
        dropout: float = 0.1,
        eos_id: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.eos_id = boundary_label(num_labels, eos_id)
        self.bos_id = self.eos_id
        self.num_labels = num_labels
        self.embedding = nn.Embedding(self.num_classes, embedding_dim)
        self.cell = nn.LSTMCell(embedding_dim + encoder_dim, hidden_dim)
        self.attention = LocationAwareAttention(
            hidden_dim, encoder_dim, attention_dim, kernel_size=location_kernel_size
        )
        self.readout = nn.Linear(hidden_dim + embedding_dim + encoder_dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_dim, self.num_classes)

    def forward(self, labels: Tensor, lengths: Tensor, encoder_out: Tensor, encoder_lengths: Tensor) -> Tensor:
        """Logits of the label behind each, given the true labels before.

        Args:
            labels: (B, S), the first is `bos_id`.
            lengths: (B,); not needed, as no label sees later ones.
            encoder_out: (B, T, E).
            encoder_lengths: (B,).

        Returns:
            (B, S, V).
        """
        state = self.initial_state(encoder_out, encoder_lengths)
        embedded = self.dropout(self.embedding(labels))
        summaries = []
        for index in range(labels.shape[1]):
            summary, state = self._advance(embedded[:, index], state)
            summaries.append(summary)
        return self._logits(torch.stack(summaries, dim=1))

    def initial_state(self, encoder_out: Tensor, encoder_lengths: Tensor) -> dict[str, Tensor]:
        """The state before `bos_id`, for encoder_out (N, T, E), encoder_lengths (N,).

        `encoder` (N, T, E), `encoder_keys` (N, T, A), `encoder_mask` (N, T), which no step changes; `h`, `c` (N, H),
        `context` (N, E), `attended` (N, T): sum of the attention weights so far.
        """
        num_seqs, num_frames, _ = encoder_out.shape
        zeros = encoder_out.new_zeros(num_seqs, self.cell.hidden_size)
        return {
            "encoder": encoder_out,
            "encoder_keys": self.attention.project(encoder_out),
            "encoder_mask": sequence_mask(encoder_lengths, num_frames),
            "h": zeros,
            "c": zeros,
            "context": encoder_out.new_zeros(num_seqs, encoder_out.shape[2]),
            "attended": encoder_out.new_zeros(num_seqs, num_frames),
        }

    def step(self, labels: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Labels (N,) and the state before them -> log probabilities (N, V) of the next ones, and the new state."""
        summary, state = self._advance(self.dropout(self.embedding(labels)), state)
        return self._logits(summary).log_softmax(-1), state

    def _advance(self, embedded: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Embedded label (N, M) -> what the readout looks at, (N, H+M+E), and the new state."""
        h, c = self.cell(torch.cat([embedded, state["context"]], dim=-1), (state["h"], state["c"]))
        weights = self.attention(h, state["encoder_keys"], state["encoder_mask"], state["attended"])
        context = (weights[:, None, :] @ state["encoder"])[:, 0]
        new_state = {**state, "h": h, "c": c, "context": context, "attended": state["attended"] + weights}
        return torch.cat([h, embedded, context], dim=-1), new_state

    def _logits(self, summary: Tensor) -> Tensor:
        return self.output(self.dropout(self.readout(summary).tanh()))


class LocationAwareAttention(nn.Module):
    """Attention weights from the query, the frames, and where it was attended before (Chorowski et al. 2015,
    Attention-Based Models for Speech Recognition, equation 9): energy = w tanh(W s + V h + U (K * a)).

    `a` is here the sum of all weights before, K a convolution over time.

    Args:
        query_dim: features of the query.
        memory_dim: features of the frames.
        attention_dim: A.
        num_filters: channels of the convolution.
        kernel_size: its frames, odd.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(
        self, query_dim: int, memory_dim: int, attention_dim: int, num_filters: int = 16, kernel_size: int = 15
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"the kernel over attention weights has {kernel_size} frames: expected an odd number")
        self.query = nn.Linear(query_dim, attention_dim)
        self.key = nn.Linear(memory_dim, attention_dim, bias=False)
        self.conv = nn.Conv1d(1, num_filters, kernel_size, padding=kernel_size // 2, bias=False)
        self.location = nn.Linear(num_filters, attention_dim, bias=False)
        self.energy = nn.Linear(attention_dim, 1, bias=False)

    def project(self, memory: Tensor) -> Tensor:
        """Computed once for all steps: (N, T, memory_dim) -> (N, T, A)."""
        return self.key(memory)

    def forward(self, query: Tensor, keys: Tensor, mask: Tensor, attended: Tensor) -> Tensor:
        """(N, query_dim), (N, T, A), (N, T) with True at real frames, (N, T) sum of weights -> weights (N, T)."""
        location = self.location(self.conv(attended[:, None]).transpose(1, 2))
        energies = self.energy((self.query(query)[:, None] + keys + location).tanh())[:, :, 0]
        return energies.masked_fill(~mask, torch.finfo(energies.dtype).min).softmax(-1)
