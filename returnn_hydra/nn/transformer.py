"""Transformer layers, norm in front of each part (Xiong et al. 2020, On Layer Normalization in the Transformer).

Legend: B sequences, N hypotheses, T frames, S frames of the memory, D model features.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from returnn_hydra.batch import sequence_mask
from returnn_hydra.nn.attention import CrossAttention, SelfAttention
from returnn_hydra.nn.positions import sinusoids

POSITIONS = ("sinusoidal", "relative", "rotary", "none")


class FeedForward(nn.Sequential):
    """Two linear layers with an activation between: (..., D) -> (..., D).

    Args:
        model_dim: D.
        hidden_dim: features between the layers.
        dropout: behind both, in training.
        activation: default ReLU.
    """

    def __init__(
        self, model_dim: int, hidden_dim: int, dropout: float = 0.0, activation: nn.Module | None = None
    ) -> None:
        super().__init__(
            nn.Linear(model_dim, hidden_dim),
            activation if activation is not None else nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, model_dim),
            nn.Dropout(dropout),
        )


class InputPositions(nn.Module):
    """Adds sinusoidal positions, if these are the chosen ones; the others are the attention's business.

    Args:
        positions: one of "sinusoidal", "relative", "rotary", "none".

    Raises:
        ValueError: another word.
    """

    def __init__(self, positions: str) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(f"positions={positions!r}: expected one of {', '.join(POSITIONS)}")
        self.added = positions == "sinusoidal"
        self.in_attention = "none" if self.added else positions

    def forward(self, features: Tensor, first: int = 0) -> Tensor:
        """(B, T, D), whose first frame is at position `first` -> (B, T, D)."""
        if not self.added:
            return features
        frames = torch.arange(first, first + features.shape[1], device=features.device)
        return features + sinusoids(frames, features.shape[2]).to(features.dtype)


class TransformerLayer(nn.Module):
    """x + attention(norm(x)), optionally the same with attention to a memory, then x + feed_forward(norm(x)).

    Args:
        model_dim: D.
        num_heads: attention heads.
        feed_forward_dim: features inside the feed-forward part.
        dropout: behind each part, inside the feed-forward part and on attention weights, in training.
        positions: of the self-attention: "none", "relative", "rotary".
        memory_dim: features of the memory; None: no attention to a memory.
    """

    def __init__(
        self,
        model_dim: int,
        num_heads: int,
        feed_forward_dim: int,
        dropout: float = 0.0,
        positions: str = "none",
        memory_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(model_dim)
        self.self_attention = SelfAttention(model_dim, num_heads, positions, dropout)
        self.cross_attention: CrossAttention | None = None
        if memory_dim is not None:
            self.cross_norm = nn.LayerNorm(model_dim)
            self.cross_attention = CrossAttention(model_dim, memory_dim, num_heads, dropout)
        self.feed_forward_norm = nn.LayerNorm(model_dim)
        self.feed_forward = FeedForward(model_dim, feed_forward_dim, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        features: Tensor,
        mask: Tensor,
        causal: bool = False,
        keys_values: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            features: (B, T, D).
            mask: (B, T), True at real frames.
            causal: no frame looks at later ones.
            keys_values: the memory, (B, S, 2D) from `cross_attention.project`.
            memory_mask: (B, S), True at real frames.

        Returns:
            (B, T, D).
        """
        attended = self.self_attention(self.self_norm(features), mask, causal)
        return self._finish(features + self.dropout(attended), keys_values, memory_mask)

    def step(
        self, features: Tensor, cache: Tensor, keys_values: Tensor | None = None, memory_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The next frame of a causal layer: (N, D), cache (N, S, 2D) -> (N, D), cache (N, S+1, 2D).

        The memory may have N / K rows, each of K rows of the features in turn.
        """
        attended, cache = self.self_attention.step(self.self_norm(features), cache)
        features = features + self.dropout(attended)
        groups = len(features) if keys_values is None else len(keys_values)  # hypotheses may share one memory
        outputs = self._finish(features.view(groups, -1, features.shape[-1]), keys_values, memory_mask)
        return outputs.flatten(0, 1), cache

    def _finish(self, features: Tensor, keys_values: Tensor | None, memory_mask: Tensor | None) -> Tensor:
        if self.cross_attention is not None:
            attended = self.cross_attention(self.cross_norm(features), keys_values, memory_mask)
            features = features + self.dropout(attended)
        return features + self.feed_forward(self.feed_forward_norm(features))


class TransformerStack(nn.Module):
    """Positions, dropout, layers and a last norm: what encoders, decoders and language models are made of.

    Args:
        model_dim: D.
        num_layers: transformer layers.
        num_heads: attention heads.
        feed_forward_dim: features inside the feed-forward parts; None: 4D.
        dropout: in training.
        positions: "sinusoidal" (added to the input), "relative", "rotary" (in the self-attention), "none".
        memory_dim: features of the memory that the layers attend to; None: there is none.
    """

    def __init__(
        self,
        model_dim: int,
        num_layers: int,
        num_heads: int,
        feed_forward_dim: int | None,
        dropout: float,
        positions: str,
        memory_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.positions = InputPositions(positions)
        self.dropout = nn.Dropout(dropout)
        hidden_dim = feed_forward_dim or 4 * model_dim
        self.layers = nn.ModuleList(
            TransformerLayer(model_dim, num_heads, hidden_dim, dropout, self.positions.in_attention, memory_dim)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(model_dim)

    def forward(
        self,
        features: Tensor,
        lengths: Tensor,
        causal: bool = False,
        memory: Tensor | None = None,
        memory_lengths: Tensor | None = None,
    ) -> Tensor:
        """(B, T, D), (B,), and if there is one a memory (B, S, memory_dim), (B,) -> (B, T, D)."""
        features = self.dropout(self.positions(features))
        mask = sequence_mask(lengths, features.shape[1])
        memory_mask = None
        if memory is not None and memory_lengths is not None:
            memory_mask = sequence_mask(memory_lengths, memory.shape[1])
        for layer in self._layers():
            keys_values = None
            if layer.cross_attention is not None and memory is not None:
                keys_values = layer.cross_attention.project(memory)
            features = layer(features, mask, causal, keys_values, memory_mask)
        return self.norm(features)

    def initial_state(self, num_seqs: int) -> dict[str, Tensor]:
        """The state before the first frame of a causal stack: `cache_LAYER`, keys and values so far, (N, 0, 2D)."""
        return {
            f"cache_{index}": layer.self_attention.empty_cache(num_seqs) for index, layer in enumerate(self._layers())
        }

    def memory_state(self, memory: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """What no step changes, for a memory (N, S, memory_dim), (N,).

        `memory_mask` (N, S), and the layers' keys and values `memory_LAYER` (N, S, 2D).
        """
        state = {"memory_mask": sequence_mask(lengths, memory.shape[1])}
        for index, layer in enumerate(self._layers()):
            assert layer.cross_attention is not None
            state[f"memory_{index}"] = layer.cross_attention.project(memory)
        return state

    def step(self, features: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The next frame (N, D) and the state before it -> (N, D) and the new state."""
        num_before = state["cache_0"].shape[1]
        features = self.dropout(self.positions(features[:, None], num_before))[:, 0]
        new_state = dict(state)
        for index, layer in enumerate(self._layers()):
            cache, keys_values = state[f"cache_{index}"], state.get(f"memory_{index}")
            features, new_state[f"cache_{index}"] = layer.step(features, cache, keys_values, state.get("memory_mask"))
        return self.norm(features), new_state

    def _layers(self) -> list[TransformerLayer]:
        return cast(list[TransformerLayer], list(self.layers))
