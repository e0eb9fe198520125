"""Transformer decoder that attends to an encoder.

Legend: B sequences, N hypotheses, S labels, T encoder frames, E encoder features, D model features, V classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from returnn_hydra.models.vocabulary import boundary_label
from returnn_hydra.nn.transformer import TransformerStack


class TransformerDecoder(nn.Module):
    """log p(next label | labels before, encoder), by causal transformer layers with attention to the encoder's outputs
    (Vaswani et al. 2017, norms first); keys and values are cached when it goes step by step.

    Args:
        encoder_dim: E.
        num_labels: of the vocabulary.
        model_dim: D.
        num_layers: transformer layers.
        num_heads: attention heads.
        feed_forward_dim: default 4D.
        dropout: in training.
        positions: "sinusoidal" (added to the input), "relative", "rotary" (in the attention), "none".
        eos_id: sentence end of the vocabulary, also fed as begin; None: a further class, `num_labels`.
    """

    shares_memory = True
    """`step` takes a memory with one row for several hypotheses of a sequence."""

    def __init__(
        self,
        encoder_dim: int,
        num_labels: int,
        model_dim: int = 256,
        num_layers: int = 4,
        num_heads: int = 4,
        feed_forward_dim: int | None = None,
        dropout: float = 0.1,
        positions: str = "sinusoidal",
        eos_id: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.eos_id = boundary_label(num_labels, eos_id)
        self.bos_id = self.eos_id
        self.num_labels = num_labels
        self.embedding = nn.Embedding(self.num_classes, model_dim)
        self.layers = TransformerStack(
            model_dim, num_layers, num_heads, feed_forward_dim, dropout, positions, encoder_dim
        )
        self.output = nn.Linear(model_dim, self.num_classes)

    def forward(self, labels: Tensor, lengths: Tensor, encoder_out: Tensor, encoder_lengths: Tensor) -> Tensor:
        """Logits of the label behind each, given the true labels before.

        Args:
            labels: (B, S), the first is `bos_id`.
            lengths: (B,).
            encoder_out: (B, T, E).
            encoder_lengths: (B,).

        Returns:
            (B, S, V).
        """
        features = self.layers(self.embedding(labels), lengths, True, encoder_out, encoder_lengths)
        return self.output(features)

    def initial_state(self, encoder_out: Tensor, encoder_lengths: Tensor) -> dict[str, Tensor]:
        """The state before `bos_id`, for encoder_out (N, T, E), encoder_lengths (N,).

        `memory_mask` (N, T) and for each layer `memory_LAYER` (N, T, 2D), which no step changes, and `cache_LAYER`
        (N, number of labels so far, 2D).
        """
        return {
            **self.layers.memory_state(encoder_out, encoder_lengths),
            **self.layers.initial_state(len(encoder_out)),
        }

    def step(self, labels: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Labels (N,) and the state before them -> log probabilities (N, V) of the next ones, and the new state."""
        features, new_state = self.layers.step(self.embedding(labels), state)
        return self.output(features).log_softmax(-1), new_state
