"""Random changes of a waveform: volume, speed, tempo, pitch.

Legend: S samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from returnn_hydra.data.dataset import DataError
from returnn_hydra.extras import require


@dataclass(frozen=True)
class AudioPerturbation:
    """Volume always, and speed, tempo, pitch each with a probability (`_switch`); RETURNN's `random_permute`
    options.
    """

    rnd_scale_lower: float = 0.8
    rnd_scale_upper: float = 1.0
    """Factor of the waveform."""
    rnd_zoom_switch: float = 0.2
    rnd_zoom_lower: float = 0.9
    rnd_zoom_upper: float = 1.1
    """Factor of the duration, the pitch changes along with it."""
    rnd_zoom_order: int = 3
    """Of the spline that interpolates between samples."""
    rnd_stretch_switch: float = 0.2
    rnd_stretch_lower: float = 0.9
    rnd_stretch_upper: float = 1.2
    """Factor of the tempo, the pitch stays."""
    rnd_pitch_switch: float = 0.2
    rnd_pitch_lower: float = -1.0
    rnd_pitch_upper: float = 1.0
    """Semitones up or down, the tempo stays."""

    @staticmethod
    def from_option(option: bool | Mapping[str, float] | None) -> AudioPerturbation | None:
        """From `random_permute`: true, a dict of the options above, or nothing.

        Raises:
            DataError: an option that does not exist.
        """
        if not option:
            return None
        try:
            return AudioPerturbation(**({} if option is True else option))  # type: ignore[arg-type]
        except TypeError as error:
            raise DataError(f"random_permute: {error}") from error

    def __call__(self, audio: np.ndarray, sample_rate: int, rng: Any) -> np.ndarray:
        """A changed copy of the waveform (S,); as many draws as RETURNN makes, in its order."""
        audio = audio * rng.uniform(self.rnd_scale_lower, self.rnd_scale_upper)
        if rng.uniform(0.0, 1.0) < self.rnd_zoom_switch:
            factor = rng.uniform(self.rnd_zoom_lower, self.rnd_zoom_upper)
            audio = require("scipy.ndimage", extra="audio").zoom(audio, factor, order=self.rnd_zoom_order)
        if rng.uniform(0.0, 1.0) < self.rnd_stretch_switch:
            rate = rng.uniform(self.rnd_stretch_lower, self.rnd_stretch_upper)
            audio = require("librosa", extra="audio").effects.time_stretch(audio, rate=rate)
        if rng.uniform(0.0, 1.0) < self.rnd_pitch_switch:
            steps = rng.uniform(self.rnd_pitch_lower, self.rnd_pitch_upper)
            audio = require("librosa", extra="audio").effects.pitch_shift(audio, sr=sample_rate, n_steps=steps)
        return audio


def change_speed(audio: np.ndarray, factor: float) -> np.ndarray:
    """The waveform played `factor` times as fast, band-limited: (S, ...) -> (speed_length(S), ...)."""
    ratio = _ratio(factor)
    if ratio == 1:
        return audio
    return require("scipy.signal", extra="audio").resample_poly(audio, ratio.denominator, ratio.numerator, axis=0)


def speed_length(num_samples: np.ndarray, factor: float) -> np.ndarray:
    """Samples after `change_speed`."""
    ratio = _ratio(factor)
    return -(-np.asarray(num_samples, dtype=np.int64) * ratio.denominator // ratio.numerator)


def _ratio(factor: float) -> Fraction:
    if not 0.1 <= factor <= 10:
        raise DataError(f"speed factor {factor}: expected a number around 1, e.g. 0.9")
    return Fraction(factor).limit_denominator(100)
