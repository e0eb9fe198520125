"""Modules one behind the other."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Chain(nn.Module):
    """Parts that pass features and lengths on: augmentation, front-end, encoder, ...

    Args:
        parts: modules with `forward(features, lengths) -> (features, lengths)`.

    Raises:
        ValueError: no part.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("parts: expected at least one")
        self.parts = nn.ModuleList(parts)

    @property
    def output_dim(self) -> int:
        """Features of the last part."""
        return self.parts[-1].output_dim  # type: ignore[return-value]

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,) -> (B, T', C), (B,)."""
        for part in self.parts:
            features, lengths = part(features, lengths)
        return features, lengths
