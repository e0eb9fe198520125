"""Transformer language model.

Legend: B sequences, N hypotheses, S labels, D model features, V classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from returnn_hydra.models.vocabulary import boundary_label
from returnn_hydra.nn.transformer import TransformerStack


class TransformerLanguageModel(nn.Module):
    """log p(next label | labels before), by causal transformer layers (Irie et al. 2019, Language Modeling with Deep
    Transformers), with cached keys and values when it goes step by step.

    Args:
        num_labels: of the vocabulary.
        model_dim: D.
        num_layers: transformer layers.
        num_heads: attention heads.
        feed_forward_dim: default 4D.
        dropout: in training.
        positions: "sinusoidal" (added to the input), "relative", "rotary" (in the attention), "none".
        eos_id: sentence end of the vocabulary, also fed as begin; None: a further class, `num_labels`.
    """

    def __init__(
        self,
        num_labels: int,
        model_dim: int = 256,
        num_layers: int = 4,
        num_heads: int = 4,
        feed_forward_dim: int | None = None,
        dropout: float = 0.1,
        positions: str = "rotary",
        eos_id: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.eos_id = boundary_label(num_labels, eos_id)
        self.bos_id = self.eos_id
        self.embedding = nn.Embedding(self.num_classes, model_dim)
        self.layers = TransformerStack(model_dim, num_layers, num_heads, feed_forward_dim, dropout, positions)
        self.output = nn.Linear(model_dim, self.num_classes)

    def forward(self, labels: Tensor, lengths: Tensor) -> Tensor:
        """Logits of the label behind each: (B, S), (B,) -> (B, S, V). The first label is `bos_id`."""
        return self.output(self.layers(self.embedding(labels), lengths, causal=True))

    def initial_state(self, num_seqs: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The state before `bos_id`: `cache_LAYER`, keys and values of the labels so far, (N, 0, 2D)."""
        return {key: cache.to(device) for key, cache in self.layers.initial_state(num_seqs).items()}

    def step(self, labels: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Labels (N,) and the state before them -> log probabilities (N, V) of the next ones, and the new state."""
        features, new_state = self.layers.step(self.embedding(labels), state)
        return self.output(features).log_softmax(-1), new_state
