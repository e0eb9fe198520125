"""Signal processing: spectra and filter banks.

Legend: B sequences, T samples or frames, N FFT size, F bins.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.errors import TooShort
from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.network.registry import register_layer


@register_layer("stft")
def stft(
    call: LayerCall,
    *,
    frame_shift: int,
    frame_size: int,
    fft_size: int | None = None,
    window: str = "hann",
    use_rfft: bool = True,
    in_spatial_dims: Any = None,
    out_spatial_dims: Any = None,
) -> NamedTensor:
    """Short-time spectra without padding: (B, T) or (B, T, 1) -> (B, T', F), complex."""
    del in_spatial_dims, out_spatial_dims
    if not use_rfft or window != "hann":
        raise call.error("only use_rfft = True and window = 'hann' are supported")
    x = call.x
    if x.feature is not None and x.feature.size == 1:
        x = x.select(x.feature, 0)
    time = call.time(x)
    size = fft_size or frame_size
    if time.size < frame_size:
        raise TooShort(f"{call.path}: frames of {frame_size} samples over {time}")
    frames = x.moved_last(time).raw.unfold(-1, frame_size, frame_shift)
    taper = torch.hann_window(frame_size, periodic=True, device=x.raw.device)
    spectra = torch.fft.rfft(frames * taper, n=size)

    def change(n: torch.Tensor) -> torch.Tensor:
        return torch.div((n - frame_size + frame_shift).clamp(min=0), frame_shift, rounding_mode="floor")

    new = time.with_lengths(("conv", frame_size - 1, frame_shift), f"{call.name}:stft", frames.shape[-2], change)
    feature = call.new_feature(size // 2 + 1)
    rest = [axis for axis in x.axes if axis is not time]
    return x.dense(spectra, [*rest, new, feature], feature=feature, time=new)


@register_layer("mel_filterbank", framewise=True)
def mel_filterbank(
    call: LayerCall,
    *,
    sampling_rate: int = 16000,
    fft_size: int = 1024,
    nr_of_filters: int | None = None,
    f_min: float = 0.0,
    f_max: float | None = None,
) -> NamedTensor:
    """Triangular mel filters over the bins of a spectrum."""
    x = call.x
    bins = call.feature(x)
    count = nr_of_filters or call.need_n_out()
    weights = torch.from_numpy(_mel_matrix(count, bins.size, sampling_rate, fft_size, f_min, f_max)).to(x.raw)
    feature = call.new_feature(count)
    moved = x.moved_last(bins)
    return moved.dense(moved.raw @ weights, [*moved.axes[:-1], feature], feature=feature)


def _mel_matrix(
    count: int, num_bins: int, sampling_rate: int, fft_size: int, f_min: float, f_max: float | None
) -> np.ndarray:
    """(bins, filters): triangles between neighbouring of count + 2 points, equidistant in mel."""

    def mel(hertz: float) -> float:
        return 1127.0 * math.log(1.0 + hertz / 700.0)

    points = np.linspace(mel(f_min), mel(f_max if f_max is not None else sampling_rate / 2), count + 2)
    hertz = 700.0 * (np.exp(points / 1127.0) - 1.0)
    centers = hertz * fft_size / sampling_rate
    place = np.arange(num_bins)[:, None]
    up = (place - centers[None, :-2]) / (centers[1:-1] - centers[:-2])
    down = (centers[None, 2:] - place) / (centers[2:] - centers[1:-1])
    return np.maximum(0.0, np.minimum(up, down)).astype("float32")


@register_layer("dct", framewise=True)
def dct(call: LayerCall, *, type: int = 2, n: int | None = None, norm: str | None = None) -> NamedTensor:
    """Discrete cosine transform of the features (type 2)."""
    if type != 2 or n is not None:
        raise call.error("only type = 2 without n is supported")
    x = call.x
    feature = call.feature(x)
    size = feature.size
    k = torch.arange(size, dtype=torch.float64)
    matrix = 2.0 * torch.cos(math.pi * k[None, :] * (2 * k[:, None] + 1) / (2 * size))  # (in, out)
    if norm == "ortho":
        matrix = matrix * math.sqrt(0.5 / size)
        matrix[:, 0] *= math.sqrt(0.5)
    elif norm is not None:
        raise call.error(f"norm = {norm!r} is not supported; nearest: 'ortho'")
    moved = x.moved_last(feature)
    return moved.dense(moved.raw @ matrix.to(moved.raw)).ordered(x.axes)


@register_layer("complex_to_alternating_real", framewise=True)
def complex_to_alternating_real(call: LayerCall) -> NamedTensor:
    """Real and imaginary parts as neighbouring features."""
    x = call.x
    feature = call.feature(x)
    moved = x.moved_last(feature)
    new = call.new_feature(2 * feature.size)
    return moved.dense(torch.view_as_real(moved.raw.resolve_conj()).flatten(-2), [*moved.axes[:-1], new], feature=new)


@register_layer("istft")
def istft(
    call: LayerCall,
    *,
    frame_shift: int,
    frame_size: int,
    fft_size: int | None = None,
    in_spatial_dims: Any = None,
    out_spatial_dims: Any = None,
    use_time_mask: bool = False,
) -> NamedTensor:
    """Samples from short-time spectra, the inverse of `stft`: (B, T', F), complex -> (B, T, 1).

    The window is that with which the overlapping frames of a Hann window add up to the signal (Griffin, Lim 1984).
    """
    del in_spatial_dims, out_spatial_dims
    x = call.x
    time, feature, size = call.time(x), call.feature(x), fft_size or frame_size
    if feature.size != size // 2 + 1:
        raise call.error(f"needs {size // 2 + 1} bins for fft_size = {size}, but the input has {feature.size}")
    if use_time_mask:
        x = x.like(x.masked([time], 0))
    rest = [axis for axis in x.axes if axis not in (time, feature)]
    spectra = x.ordered([*rest, time, feature]).raw
    frames = torch.fft.irfft(spectra, n=size)[..., :frame_size]
    frames = torch.nn.functional.pad(frames, (0, frame_size - frames.shape[-1])) * _inverse_window(
        frame_size, frame_shift, frames
    )
    count = time.size
    length = (count - 1) * frame_shift + frame_size if count else 0
    samples = torch.nn.functional.fold(
        frames.reshape(-1, count, frame_size).transpose(1, 2), (1, length), (1, frame_size), stride=(1, frame_shift)
    )

    def change(n: torch.Tensor) -> torch.Tensor:
        return torch.where(n > 0, (n - 1) * frame_shift + frame_size, 0)

    new = time.with_lengths(("istft", frame_size, frame_shift), f"{call.name}:istft", length, change)
    out = call.new_feature(1)
    raw = samples.reshape(*[axis.size for axis in rest], length, 1)
    return x.dense(raw, [*rest, new, out], feature=out, time=new)


def _inverse_window(size: int, shift: int, like: torch.Tensor) -> torch.Tensor:
    """The Hann window divided by the sum of the squares of all its shifted copies."""
    window = torch.hann_window(size, periodic=True, dtype=like.dtype, device=like.device)
    copies = -(-size // shift)
    squares = torch.nn.functional.pad(window.square(), (0, copies * shift - size)).reshape(copies, shift).sum(0)
    return window / squares.repeat(copies)[:size]
