"""What encoders have in common."""

from __future__ import annotations

from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.module import Module
from returnn_hydra.frontend.tensor import Tensor


class IEncoder(Module):
    """A vector to a vector."""

    out_dim: Dim

    def __call__(self, source: Tensor) -> Tensor:
        raise NotImplementedError


class ISeqFramewiseEncoder(Module):
    """As many frames out as in."""

    out_dim: Dim

    def __call__(self, source: Tensor, *, spatial_dim: Dim) -> Tensor:
        raise NotImplementedError


class ISeqDownsamplingEncoder(Module):
    """Fewer frames out than in: returns them and their dim.

    `downsample_factor` frames in make one out.
    """

    out_dim: Dim
    downsample_factor: int

    def __call__(self, source: Tensor, *, in_spatial_dim: Dim) -> tuple[Tensor, Dim]:
        raise NotImplementedError
