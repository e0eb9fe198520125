"""Multi-head attention (Vaswani et al. 2017, Attention Is All You Need) over padded sequences, with cached steps.

Legend: B sequences, N hypotheses, T queries, S keys, D model features, H heads, E = D/H features per head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from returnn_hydra.nn.positions import relative_shift, rotate, sinusoids

POSITIONS = ("none", "relative", "rotary")


def check_heads(model_dim: int, num_heads: int) -> None:
    """Raises ValueError where the heads do not share the features evenly."""
    if model_dim % num_heads != 0 or (model_dim // num_heads) % 2 != 0:
        raise ValueError(f"model_dim={model_dim}, num_heads={num_heads}: expected an even number of features per head")


class SelfAttention(nn.Module):
    """Every frame looks at all frames of its sequence, or at those before it.

    Args:
        model_dim: D.
        num_heads: H.
        positions: "none"; "relative": learned scores of sinusoidal distances (Dai et al. 2019, Transformer-XL,
            section 3.3); "rotary": rotated queries and keys (Su et al. 2021, RoFormer).
        dropout: on the attention weights, in training.

    Raises:
        ValueError: another word for `positions`, or heads that do not divide D.
    """

    def __init__(self, model_dim: int, num_heads: int, positions: str = "none", dropout: float = 0.0) -> None:
        super().__init__()
        check_heads(model_dim, num_heads)
        if positions not in POSITIONS:
            raise ValueError(f"positions={positions!r}: expected one of {', '.join(POSITIONS)}")
        self.num_heads = num_heads
        self.positions = positions
        self.dropout = dropout
        self.query_key_value = nn.Linear(model_dim, 3 * model_dim)
        self.output = nn.Linear(model_dim, model_dim)
        if positions == "relative":
            self.distance_key = nn.Linear(model_dim, model_dim, bias=False)
            self.content_bias = nn.Parameter(torch.zeros(num_heads, model_dim // num_heads))
            self.distance_bias = nn.Parameter(torch.zeros(num_heads, model_dim // num_heads))

    def forward(self, features: Tensor, mask: Tensor, causal: bool = False) -> Tensor:
        """
        Args:
            features: (B, T, D).
            mask: (B, T), True at real frames: only these are looked at.
            causal: no frame looks at later ones.

        Returns:
            (B, T, D).
        """
        size = features.shape[1]
        query, key, value = (split_heads(part, self.num_heads) for part in self._project(features))
        if self.positions == "rotary":
            frames = torch.arange(size, device=features.device)
            query, key = rotate(query, frames), rotate(key, frames)
        allowed = mask[:, None, None, :]
        if causal:
            allowed = allowed & torch.ones(size, size, dtype=torch.bool, device=mask.device).tril()
        bias = self._distance_scores(query) if self.positions == "relative" else None
        return self._attend(query, key, value, allowed, bias)

    def empty_cache(self, num_seqs: int) -> Tensor:
        """Keys and values of no frames: (N, 0, 2D)."""
        return self.output.weight.new_zeros(num_seqs, 0, 2 * self.output.in_features)

    def step(self, features: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """The next frame, which looks at itself and the frames in the cache.

        Args:
            features: (N, D).
            cache: keys and values (N, S, 2D) of the S frames before.

        Returns:
            (N, D) and the cache with this frame, (N, S+1, 2D).
        """
        size = cache.shape[1] + 1
        query, key, value = self._project(features[:, None])
        if self.positions == "rotary":  # the cache holds rotated keys
            frame = torch.tensor([size - 1], device=features.device)
            query = join_heads(rotate(split_heads(query, self.num_heads), frame))
            key = join_heads(rotate(split_heads(key, self.num_heads), frame))
        cache = torch.cat([cache, torch.cat([key, value], dim=-1)], dim=1)
        heads = split_heads(query, self.num_heads)
        keys, values = (split_heads(part, self.num_heads) for part in cache.chunk(2, dim=-1))
        bias = self._distance_scores_of_last(heads, size) if self.positions == "relative" else None
        return self._attend(heads, keys, values, None, bias)[:, 0], cache

    def _project(self, features: Tensor) -> tuple[Tensor, ...]:
        return self.query_key_value(features).chunk(3, dim=-1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, bias: Tensor | None) -> Tensor:
        """(B, H, T, E), 2x (B, H, S, E) -> (B, T, D); `bias` is added to the scores, `allowed` masks them."""
        dropout = self.dropout if self.training else 0.0
        if bias is None:
            values = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
            return self.output(join_heads(values))
        content = (query + self.content_bias[:, None]) @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        scores = content + bias
        if allowed is not None:
            scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        return self.output(join_heads(F.dropout(scores.softmax(-1), dropout) @ value))

    def _distance_scores(self, query: Tensor) -> Tensor:
        """Scores of the distances between all frames: (B, H, T, E) -> (B, H, T, T)."""
        size = query.shape[2]
        distances = size - 1 - torch.arange(2 * size - 1, device=query.device)
        return relative_shift(self._score_distances(query, distances))

    def _distance_scores_of_last(self, query: Tensor, size: int) -> Tensor:
        """Scores of the last frame's distances to all `size` frames: (N, H, 1, E) -> (N, H, 1, S)."""
        return self._score_distances(query, size - 1 - torch.arange(size, device=query.device))

    def _score_distances(self, query: Tensor, distances: Tensor) -> Tensor:
        keys = self.distance_key(sinusoids(distances, self.output.in_features).to(query.dtype))
        keys = split_heads(keys[None], self.num_heads)
        return (query + self.distance_bias[:, None]) @ keys.transpose(-2, -1) * query.shape[-1] ** -0.5


class CrossAttention(nn.Module):
    """Queries look at the frames of another sequence (an encoder's outputs).

    Args:
        model_dim: D, of the queries.
        memory_dim: features of the frames that are looked at.
        num_heads: H.
        dropout: on the attention weights, in training.
    """

    def __init__(self, model_dim: int, memory_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        check_heads(model_dim, num_heads)
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(model_dim, model_dim)
        self.key_value = nn.Linear(memory_dim, 2 * model_dim)
        self.output = nn.Linear(model_dim, model_dim)

    def project(self, memory: Tensor) -> Tensor:
        """Keys and values, computed once for all steps: (B, S, memory_dim) -> (B, S, 2D)."""
        return self.key_value(memory)

    def forward(self, features: Tensor, keys_values: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D) queries, (B, S, 2D) from `project`, and (B, S) with True at real frames -> (B, T, D)."""
        query = split_heads(self.query(features), self.num_heads)
        key, value = (split_heads(part, self.num_heads) for part in keys_values.chunk(2, dim=-1))
        dropout = self.dropout if self.training else 0.0
        allowed = mask[:, None, None, :]
        return self.output(
            join_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout))
        )


def split_heads(features: Tensor, num_heads: int) -> Tensor:
    """(B, T, D) -> (B, H, T, E)."""
    return features.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(features: Tensor) -> Tensor:
    """(B, H, T, E) -> (B, T, D)."""
    return features.transpose(1, 2).flatten(2)
