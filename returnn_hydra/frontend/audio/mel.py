"""Mel filter bank features."""

from __future__ import annotations

import math

import torch

from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.elementwise import abs as abs_
from returnn_hydra.frontend.elementwise import cast, log, maximum
from returnn_hydra.frontend.linear import matmul
from returnn_hydra.frontend.signal import stft
from returnn_hydra.frontend.tensor import Tensor


def mel_filterbank(
    x: Tensor,
    *,
    in_dim: Dim,
    out_dim: Dim,
    sampling_rate: float,
    fft_length: int | None = None,
    f_min: float | None = None,
    f_max: float | None = None,
) -> Tensor:
    """Weighted sums of frequencies, triangles evenly spaced on the mel scale 1127 log(1 + f / 700).

    Args:
        x: (..., in) spectrum (absolute values or powers).
        f_min, f_max: Hz; default 0 and half the sampling rate.
    """
    fft_length = (in_dim.get_dim_value() - 1) * 2 if fft_length is None else fft_length
    weights = filter_matrix(in_dim.get_dim_value(), out_dim.get_dim_value(), float(sampling_rate), f_min, f_max)
    raw = weights.to(x.raw_tensor.device, x.raw_tensor.dtype)
    matrix = Tensor("mel", dims=[in_dim, out_dim], dtype=x.dtype, feature_dim=out_dim, raw_tensor=raw)
    out = matmul(x, matrix, reduce=in_dim)
    out.feature_dim = out_dim
    return out


def filter_matrix(
    num_frequencies: int, num_filters: int, sampling_rate: float, f_min: float | None, f_max: float | None
) -> torch.Tensor:
    """(frequencies, filters) triangles, linear in Hz, their corners evenly spaced in mel."""
    low = _mel(0.0 if f_min is None else float(f_min))
    high = _mel(sampling_rate / 2 if f_max is None else float(f_max))
    mels = torch.linspace(low, high, num_filters + 2, dtype=torch.float64)
    edges = 700.0 * torch.expm1(mels / 1127.0)
    frequencies = torch.linspace(0.0, sampling_rate / 2, num_frequencies, dtype=torch.float64)[:, None]
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0.0).to(torch.float32)


def _mel(frequency: float) -> float:
    return 1127.0 * math.log1p(frequency / 700.0)


def log_mel_filterbank_from_raw(
    raw_audio: Tensor,
    *,
    in_spatial_dim: Dim,
    out_dim: Dim,
    sampling_rate: int = 16000,
    window_len: float = 0.025,
    step_len: float = 0.01,
    n_fft: int | None = None,
    log_base: float = 10,
) -> tuple[Tensor, Dim]:
    """(..., samples) -> (..., frames, filters) logarithm of the mel energies, at least 1e-10 each.

    Args:
        window_len, step_len: seconds.
        n_fft: default: the next power of two of the window.
        log_base: of the logarithm.
    """
    if raw_audio.feature_dim is not None and raw_audio.feature_dim.dimension == 1:
        from returnn_hydra.frontend.arrays import squeeze

        raw_audio = squeeze(raw_audio, axis=raw_audio.feature_dim)
    window = int(window_len * sampling_rate)
    step = int(step_len * sampling_rate)
    if n_fft is None:
        n_fft = 2 ** math.ceil(math.log2(window))
    spectrum, time, frequency = stft(
        raw_audio, in_spatial_dim=in_spatial_dim, frame_step=step, frame_length=window, fft_length=n_fft
    )
    power = cast(abs_(spectrum) ** 2.0, raw_audio.dtype)
    mel = mel_filterbank(power, in_dim=frequency, out_dim=out_dim, sampling_rate=sampling_rate)
    out = log(maximum(mel, 1e-10))
    if log_base != math.exp(1):
        out = out * (1.0 / math.log(log_base))
    return out, time
