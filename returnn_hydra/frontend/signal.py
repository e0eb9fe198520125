"""Short-time Fourier transform."""

from __future__ import annotations

import torch

from returnn_hydra.frontend.ambient import behavior_at_least
from returnn_hydra.frontend.arrays import matched_dim
from returnn_hydra.frontend.conv import calc_conv_out_length
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.tensor import Tensor, dtype_name


def stft(
    x: Tensor,
    *,
    in_spatial_dim: Dim,
    frame_step: int,
    frame_length: int,
    fft_length: int | None = None,
    window_use_frame_length: bool = True,
    align_window_left: bool = True,
    window_enforce_even: bool = True,
    out_spatial_dim: Dim | None = None,
    out_dim: Dim | None = None,
    use_mask: bool | None = None,
) -> tuple[Tensor, Dim, Dim]:
    """Spectra of Hann-windowed frames.

    Args:
        frame_step: samples between frames; frame_length: samples in one.
        fft_length: default frame_length.
        window_use_frame_length: frames are frame_length long; False: fft_length.
        align_window_left: the window stands at the beginning of the fft's input, not in its middle.
        window_enforce_even: an odd frame_length has its window one shorter.

    Returns:
        (..., frequencies, frames) complex, the frames' dim, the frequencies' dim.
    """
    fft_length = frame_length if fft_length is None else fft_length
    window_length = frame_length - frame_length % 2 if window_enforce_even else frame_length
    extent = frame_length if window_use_frame_length else fft_length
    if behavior_at_least(23, "rf_use_mask") if use_mask is None else use_mask:
        x = x.copy_masked(0, dims=[in_spatial_dim] if in_spatial_dim.need_masking() else [])
    rest = [d for d in x.dims if d != in_spatial_dim]
    raw = x.copy_compatible_to_dims_raw([*rest, in_spatial_dim])
    raw = raw.float() if raw.dtype in (torch.float16, torch.bfloat16) else raw  # torch has no shorter transforms
    window = torch.hann_window(window_length, periodic=True, dtype=raw.dtype, device=raw.device)
    width = extent if align_window_left else max(extent, fft_length)
    left = 0 if align_window_left else (width - window_length) // 2
    window = torch.nn.functional.pad(window, (left, max(width - window_length - left, 0)))
    # The last frames may reach behind the end when the window stands in the middle of a longer fft.
    raw = torch.nn.functional.pad(raw, (0, max(width - extent, width - raw.shape[-1], 0)))
    frames = raw.unfold(-1, width, frame_step) * window
    spectrum = torch.fft.rfft(frames, n=fft_length)
    new = calc_conv_out_length(in_spatial_dim, filter_size=extent, stride=frame_step, padding="valid")
    time = matched_dim(new, out_spatial_dim)
    frequency = out_dim or Dim(fft_length // 2 + 1, name="stft-freq")
    spectrum = spectrum.narrow(-2, 0, min(time.get_dim_value(), spectrum.shape[-2]))
    spectrum = spectrum.transpose(-1, -2)
    dims = [*rest, frequency, time]
    return (
        Tensor("stft", dims=dims, dtype=dtype_name(spectrum), feature_dim=frequency, raw_tensor=spectrum),
        time,
        frequency,
    )
