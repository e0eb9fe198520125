"""Speech features of a waveform: log-mel, MFCC, spectrogram, or the waveform itself.

The numbers are those of RETURNN's ExtractAudioFeatures, i.e. of librosa with its defaults (Slaney's mel scale and
filter area, periodic Hann window, zeros around the signal), computed in float64.

Legend: S samples, T frames, K FFT bins, F features, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.checks import did_you_mean
from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.perturb import AudioPerturbation
from returnn_hydra.extras import require

LOG_FLOOR = 1e-3
"""Smallest mel energy before the logarithm."""
DB_RANGE = 80.0
"""MFCC and log-log-mel: nothing is more than so many dB below the maximum of the sequence."""
DELTA_WIDTH = 9
"""Frames that a derivative looks at."""

Norm = float | str | Path | np.ndarray | list | None


class AudioFeatures:
    """Computes features of waveforms; all parameters as of RETURNN's `audio` option.

    Args:
        features: mfcc, log_mel_filterbank, log_log_mel_filterbank, db_mel_filterbank, linear_spectrogram, raw, or a
            function (audio, sample_rate, window_len, step_len, num_feature_filters, rng, ...) -> (T, F).
        num_feature_filters: F, before derivatives and joining; default 40, raw: 1.
        window_len, step_len: of a frame, in seconds.
        feature_options: further parameters: n_mels, fmin, fmax (mfcc), fmin, fmax, min_amp (db_mel_filterbank),
            center (these and linear_spectrogram).
        with_delta: append so many derivatives.
        norm_mean, norm_std_dev: subtract and divide by a number, by the vector in a text file, or, "per_seq", by the
            sequence's own.
        peak_normalization: divide the waveform by its largest absolute value.
        preemphasis: subtract so much of the sample before, from each.
        join_frames: stack so many frames to one; the last one is repeated to fill up.
        sample_rate: expected of every file, in Hz; None: any.
        num_channels: C, only for raw, which then is (S, C, 1).
        random_permute: change speed, tempo, pitch and volume at random: true, or options of AudioPerturbation.
        pre_process: (audio, sample_rate, rng) -> audio, before the features.
        post_process: (features, seq_name) -> features, after all.

    Raises:
        DataError: a feature type that does not exist, or parameters that contradict each other.
    """

    def __init__(
        self,
        features: str | Callable[..., np.ndarray] = "mfcc",
        num_feature_filters: int | None = None,
        window_len: float = 0.025,
        step_len: float = 0.010,
        feature_options: Mapping[str, Any] | None = None,
        with_delta: int = 0,
        norm_mean: Norm = None,
        norm_std_dev: Norm = None,
        peak_normalization: bool = True,
        preemphasis: float | None = None,
        join_frames: int | None = None,
        sample_rate: int | None = None,
        num_channels: int | None = None,
        random_permute: bool | Mapping[str, float] | None = None,
        pre_process: Callable[..., np.ndarray] | None = None,
        post_process: Callable[..., np.ndarray] | None = None,
    ) -> None:
        if isinstance(features, str) and features not in (*_EXTRACTORS, "raw"):
            raise DataError(f"features={features!r}{did_you_mean(features, [*_EXTRACTORS, 'raw'])}")
        if num_channels is not None and features != "raw":
            raise DataError(
                f"num_channels={num_channels}: only raw waveforms can have several channels, not {features!r}"
            )
        self.features = features
        self.num_feature_filters = num_feature_filters or (1 if features == "raw" else 40)
        if features == "raw" and self.num_feature_filters != 1:
            raise DataError(f"features='raw' has one feature, num_feature_filters={num_feature_filters}")
        self.window_len = window_len
        self.step_len = step_len
        self.options = dict(feature_options or {})
        _check_options(features, self.options)
        self.with_delta = int(with_delta)
        self.join_frames = join_frames or 1
        self.norm_mean = self._norm("norm_mean", norm_mean)
        self.norm_std_dev = self._norm("norm_std_dev", norm_std_dev)
        self.peak_normalization = peak_normalization
        self.preemphasis = preemphasis
        self.sample_rate = sample_rate
        self.num_channels = num_channels
        self.perturbation = AudioPerturbation.from_option(random_permute)
        self.pre_process = pre_process
        self.post_process = post_process

    @property
    def dim(self) -> int:
        """F, with derivatives and joined frames."""
        return (self.with_delta + 1) * self.num_feature_filters * self.join_frames

    @property
    def spec(self) -> TensorSpec:
        """Of the stream: (T, F), or (S, C, 1)."""
        return TensorSpec(
            dim=self.dim, shape=(None, self.dim) if self.num_channels is None else (None, self.num_channels, self.dim)
        )

    @property
    def is_random(self) -> bool:
        """Whether two calls for the same waveform can differ."""
        return self.perturbation is not None or self.pre_process is not None or callable(self.features)

    def num_frames(self, num_samples: np.ndarray, sample_rate: int) -> np.ndarray | None:
        """T for waveforms of so many samples, (N,) int64; None where only computing the features would tell."""
        if self.is_random or self.post_process is not None:
            return None
        num = np.asarray(num_samples, dtype=np.int64)
        if self.features != "raw":
            size, hop = int(self.window_len * sample_rate), int(self.step_len * sample_rate)
            size = 2 * self.num_feature_filters if self.features == "linear_spectrogram" else size
            padding = size // 2 * 2 if self.options.get("center", True) else 0
            num = 1 + (num + padding - size) // hop
        return -(-num // self.join_frames)

    def __call__(self, audio: np.ndarray, sample_rate: int, rng: Any = None, seq_tag: str = "") -> np.ndarray:
        """Features of a waveform, float32 (T, F), or (S, C, 1) for several channels.

        Args:
            audio: (S,) or (S, C), between -1 and 1.
            rng: numpy's Generator or RandomState, needed if `is_random`.

        Raises:
            DataError: no samples, another sample rate or number of channels than expected, or too few frames.
        """
        where = f"seq_tag {seq_tag!r}"
        audio = self._prepared(audio, sample_rate, rng, where)
        if self.features == "raw":
            data = audio.astype(np.float32)[..., None]
        else:
            extract = self.features if callable(self.features) else _EXTRACTORS[self.features]
            extra = {"rng": rng} if callable(self.features) else {}
            frame = {"sample_rate": sample_rate, "window_len": self.window_len, "step_len": self.step_len}
            data = extract(audio=audio, num_feature_filters=self.num_feature_filters, **frame, **self.options, **extra)
            data = np.asarray(data, dtype=np.float32)
        if data.shape[1:] != ((self.num_channels,) if self.num_channels else ()) + (self.num_feature_filters,):
            raise DataError(f"{where}: features of shape {data.shape}, expected (T, {self.num_feature_filters})")
        data = self._join(self._normalise(self._derive(data, where)))
        return data if self.post_process is None else np.asarray(self.post_process(data, seq_name=seq_tag), np.float32)

    def _prepared(self, audio: np.ndarray, sample_rate: int, rng: Any, where: str) -> np.ndarray:
        """The waveform after everything that is done in the time domain."""
        if self.sample_rate is not None and sample_rate != self.sample_rate:
            raise DataError(f"{where}: sample rate {sample_rate} Hz, expected {self.sample_rate}")
        channels = 1 if audio.ndim == 1 else audio.shape[1]
        if channels != (self.num_channels or 1):
            raise DataError(f"{where}: {channels} channels, expected {self.num_channels or 1} (option num_channels)")
        if not len(audio):
            raise DataError(f"{where}: no samples")
        audio = audio[:, None] if self.num_channels == 1 and audio.ndim == 1 else audio
        audio = audio[:, 0] if self.num_channels is None and audio.ndim == 2 else audio
        if self.preemphasis:
            audio = audio - self.preemphasis * np.concatenate([np.zeros_like(audio[:1]), audio[:-1]])
        if self.peak_normalization and (peak := np.abs(audio).max()) > 0:
            audio = audio / peak
        if (self.perturbation or self.pre_process) and rng is None:
            raise DataError(f"{where}: random_permute and pre_process need a random generator")
        if self.perturbation is not None:
            audio = self.perturbation(audio, sample_rate, rng)
        return audio if self.pre_process is None else self.pre_process(audio=audio, sample_rate=sample_rate, rng=rng)

    def _derive(self, data: np.ndarray, where: str) -> np.ndarray:
        """Appends derivatives along time: (T, F) -> (T, F * (with_delta + 1))."""
        if not self.with_delta:
            return data
        if len(data) < DELTA_WIDTH:
            raise DataError(f"{where}: {len(data)} frames are too few for with_delta, which looks at {DELTA_WIDTH}")
        smooth = require("scipy.signal", extra="audio").savgol_filter
        orders = range(1, self.with_delta + 1)
        deltas = [smooth(data, DELTA_WIDTH, polyorder=n, deriv=n, axis=0, mode="interp") for n in orders]
        return np.concatenate([data, *deltas], axis=-1).astype(np.float32)

    def _normalise(self, data: np.ndarray) -> np.ndarray:
        if self.norm_mean is not None:
            data = data - (data.mean(axis=0, keepdims=True) if isinstance(self.norm_mean, str) else self.norm_mean)
        if self.norm_std_dev is not None:
            by_seq = isinstance(self.norm_std_dev, str)
            data = data / (np.maximum(data.std(axis=0, keepdims=True), 1e-2) if by_seq else self.norm_std_dev)
        return data.astype(np.float32, copy=False)

    def _join(self, data: np.ndarray) -> np.ndarray:
        """Stacks frames: (T, ..., F) -> (ceil(T / n), ..., n F), in memory order."""
        if self.join_frames == 1:
            return data
        missing = -len(data) % self.join_frames
        data = np.concatenate([data, np.repeat(data[-1:], missing, axis=0)])
        return data.reshape(len(data) // self.join_frames, *data.shape[1:-1], data.shape[-1] * self.join_frames)

    def _norm(self, option: str, value: Norm) -> float | str | np.ndarray | None:
        if value is None or isinstance(value, int | float) or (isinstance(value, str) and value == "per_seq"):
            return value
        if isinstance(value, str | Path):
            if not Path(value).is_file():
                raise DataError(f"{option}: no file {str(value)!r}; give a number, a file, or 'per_seq'")
            vector = np.loadtxt(value, dtype=np.float32, ndmin=1)
        else:
            vector = np.asarray(value, dtype=np.float32)
        dim = self.dim // self.join_frames
        if vector.shape != (dim,):
            raise DataError(f"{option}: {vector.shape} numbers, expected one for each of the {dim} features")
        return vector


def power_spectrum(audio: np.ndarray, size: int, hop: int, window_size: int, center: bool = True) -> np.ndarray:
    """Squared magnitudes of the short-time Fourier transform: (S,) -> (T, K), K = size / 2 + 1."""
    windowed = _frames(audio, size, hop, center) * _window(size, window_size)
    spectrum = np.fft.rfft(windowed, axis=1)
    return spectrum.real**2 + spectrum.imag**2


def _frames(audio: np.ndarray, size: int, hop: int, center: bool) -> np.ndarray:
    """(S,) -> (T, size); with `center`, frame t is around sample t * hop, with zeros outside."""
    if center:
        audio = np.pad(audio, size // 2)
    if len(audio) < size:
        raise DataError(f"{len(audio)} samples are fewer than the {size} of one frame")
    return np.lib.stride_tricks.sliding_window_view(audio, size)[::hop]


@lru_cache(maxsize=16)
def _window(size: int, window_size: int) -> np.ndarray:
    """A periodic Hann window in the middle of zeros, (size,)."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_size) / window_size)
    left = (size - window_size) // 2
    return np.pad(window, (left, size - window_size - left))


@lru_cache(maxsize=16)
def mel_filters(sample_rate: int, size: int, num: int, fmin: float = 0.0, fmax: float | None = None) -> np.ndarray:
    """Triangles of area one on Slaney's mel scale (Auditory Toolbox, 1998), float32 (K, num)."""
    top = sample_rate / 2 if fmax is None else fmax
    corners = _mel_to_hz(np.linspace(_hz_to_mel(fmin), _hz_to_mel(top), num + 2))
    bins = np.arange(size // 2 + 1) * sample_rate / size
    rising = (bins[:, None] - corners[:-2]) / np.diff(corners)[:-1]
    falling = (corners[2:] - bins[:, None]) / np.diff(corners)[1:]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * (2.0 / (corners[2:] - corners[:-2]))).astype(np.float32)


_LINEAR_STEP = 200.0 / 3
_LOG_START = 1000.0
_LOG_STEP = np.log(6.4) / 27.0


def _hz_to_mel(hz: float) -> float:
    """Slaney's scale: linear below 1 kHz, logarithmic above."""
    return hz / _LINEAR_STEP if hz < _LOG_START else _LOG_START / _LINEAR_STEP + np.log(hz / _LOG_START) / _LOG_STEP


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    start = _LOG_START / _LINEAR_STEP
    return np.where(mel < start, mel * _LINEAR_STEP, _LOG_START * np.exp(_LOG_STEP * (np.maximum(mel, start) - start)))


def _mel_energies(
    audio: np.ndarray,
    sample_rate: int,
    window_len: float,
    step_len: float,
    num_mels: int,
    fmin: float = 0,
    fmax: float | None = None,
    center: bool = True,
) -> np.ndarray:
    """(S,) -> (T, num_mels)."""
    size, hop = int(window_len * sample_rate), int(step_len * sample_rate)
    return power_spectrum(audio, size, hop, size, center) @ mel_filters(sample_rate, size, num_mels, float(fmin), fmax)


def _decibel(power: np.ndarray, floor: float = 1e-10) -> np.ndarray:
    """10 log10 of the power, no value more than DB_RANGE below the largest."""
    decibel = 10.0 * np.log10(np.maximum(floor, power))
    return np.maximum(decibel, decibel.max() - DB_RANGE)


def _mfcc(
    audio: np.ndarray,
    sample_rate: int,
    window_len: float,
    step_len: float,
    num_feature_filters: int,
    n_mels: int = 128,
    fmin: float = 0,
    fmax: float | None = None,
    center: bool = True,
) -> np.ndarray:
    """Cepstral coefficients, the first replaced by the root mean square of the frame."""
    decibel = _decibel(_mel_energies(audio, sample_rate, window_len, step_len, n_mels, fmin, fmax, center))
    cepstrum = decibel @ _cosines(n_mels, num_feature_filters)
    frames = _frames(audio, int(window_len * sample_rate), int(step_len * sample_rate), center)
    cepstrum[:, 0] = np.sqrt((frames**2).mean(axis=1))
    return cepstrum


@lru_cache(maxsize=16)
def _cosines(num_in: int, num_out: int) -> np.ndarray:
    """The orthonormal discrete cosine transform (type II), (num_in, num_out)."""
    angles = np.pi / num_in * (np.arange(num_in)[:, None] + 0.5) * np.arange(num_out)
    matrix = np.cos(angles) * np.sqrt(2.0 / num_in)
    matrix[:, 0] /= np.sqrt(2.0)
    return matrix


def _log_mel(
    audio: np.ndarray, sample_rate: int, window_len: float, step_len: float, num_feature_filters: int
) -> np.ndarray:
    energies = _mel_energies(audio, sample_rate, window_len, step_len, num_feature_filters)
    return np.log(np.maximum(LOG_FLOOR, energies))


def _log_log_mel(**options: Any) -> np.ndarray:
    return _decibel(_log_mel(**options) ** 2)


def _db_mel(
    audio: np.ndarray,
    sample_rate: int,
    window_len: float,
    step_len: float,
    num_feature_filters: int,
    fmin: float = 0,
    fmax: float | None = None,
    min_amp: float = 1e-10,
    center: bool = True,
) -> np.ndarray:
    energies = _mel_energies(audio, sample_rate, window_len, step_len, num_feature_filters, fmin, fmax, center)
    return 20 * np.log10(np.maximum(min_amp, energies))


def _linear_spectrogram(
    audio: np.ndarray,
    sample_rate: int,
    window_len: float,
    step_len: float,
    num_feature_filters: int,
    center: bool = True,
) -> np.ndarray:
    """Magnitudes without the zero frequency; the FFT has twice as many points as there are features."""
    size, window_size = 2 * num_feature_filters, int(window_len * sample_rate)
    if size < window_size or num_feature_filters % 2:
        raise DataError(
            f"linear_spectrogram: num_feature_filters={num_feature_filters} must be even, and twice it at least the "
            f"{window_size} samples of a window"
        )
    return np.sqrt(power_spectrum(audio, size, int(step_len * sample_rate), window_size, center))[:, 1:]


_EXTRACTORS: dict[str, Callable[..., np.ndarray]] = {
    "mfcc": _mfcc,
    "log_mel_filterbank": _log_mel,
    "log_log_mel_filterbank": _log_log_mel,
    "db_mel_filterbank": _db_mel,
    "linear_spectrogram": _linear_spectrogram,
}
_OPTIONS = {
    "mfcc": ("n_mels", "fmin", "fmax", "center"),
    "db_mel_filterbank": ("fmin", "fmax", "min_amp", "center"),
    "linear_spectrogram": ("center",),
}


def _check_options(features: str | Callable[..., np.ndarray], options: Mapping[str, Any]) -> None:
    allowed = _OPTIONS.get(features, ()) if isinstance(features, str) else tuple(options)
    for name in options:
        if name not in allowed:
            raise DataError(f"feature_options: {features} has no option {name!r}{did_you_mean(name, allowed)}")
