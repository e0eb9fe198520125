#!/usr/bin/env python3
"""Make the files of the connected digits recipe out of the Free Spoken Digit Dataset (Jackson et al., CC BY-SA 4.0).

    python scripts/prepare_digits.py PATH/TO/recordings data/digits

The recordings are `<digit>_<speaker>_<index>.wav`; as many speakers as there are. A string is 1 to 7 recordings of one
speaker, silence cut off at both ends, with pauses around them. Written are, for every speaker S,

    train.S.hdf      strings of the recordings with index 10 and up, with augmentation: see `Voice`
    dev.S.hdf        strings of index 5 to 9
    test.S.hdf       strings of index 0 to 4 (the test part by convention)
    all.S.hdf        strings of all recordings, to test on when S was held out of training
    train.without_S.txt, dev.without_S.txt   the train and dev files of the others

The features are 24 log-mel energies every 10 ms, each mapped so that it has a normal distribution over all recordings
of its speaker; no labels are needed for that.
Everything that is written is a function of the recordings and the seed.
"""

from __future__ import annotations

import argparse
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import ndtri

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.audio_file import read_audio
from returnn_hydra.data.hdf_writer import HDFWriter
from returnn_hydra.usage import UsageError

SAMPLE_RATE = 8_000
NUM_MELS = 24
LOWEST_HZ, HIGHEST_HZ = 100.0, 3900.0
STEP, WINDOW, FFT_SIZE = 80, 200, 256
"""In samples: between frames, in a frame, and with the zeros behind it."""
TRIM_DB, FLOOR_DB, LOUD_DB = 25.0, 40.0, 35.0
"""Below the loudest frames: what is cut off a recording's ends; where the features have their floor; what does not
count for the scale."""
NUM_QUANTILES = 34
MAX_DIGITS = 7
PAUSE = (0.05, 0.35)
"""Shortest and longest pause, in seconds."""
NUM_TRAIN, NUM_STRINGS = 3200, {"dev": 60, "test": 100, "all": 200}
"""Per speaker."""


@dataclass(frozen=True)
class Recording:
    """One spoken digit; `audio` is (S,)."""

    digit: int
    speaker: str
    index: int
    audio: np.ndarray


def read_recordings(folder: Path) -> dict[str, list[Recording]]:
    """All recordings by speaker, in alphabetical order.

    Raises:
        UsageError: no recordings, a file with another kind of name, or another sample rate.
    """
    found: dict[str, list[Recording]] = {}
    for file in sorted(folder.glob("*.wav")):
        match = re.fullmatch(r"(\d)_(\w+)_(\d+)", file.stem)
        if match is None:
            raise UsageError(f"{file}: expected a name like 7_jackson_32.wav")
        audio, rate = read_audio(file, str(file))
        if rate != SAMPLE_RATE or audio.ndim != 1:
            raise UsageError(f"{file}: {rate} Hz, shape {audio.shape}; expected one channel of {SAMPLE_RATE} Hz")
        recording = Recording(int(match[1]), match[2], int(match[3]), trimmed(audio))
        found.setdefault(recording.speaker, []).append(recording)
    if not found:
        raise UsageError(f"{folder}: no .wav files; expected the folder recordings/ of the Free Spoken Digit Dataset")
    return dict(sorted(found.items()))


def trimmed(audio: np.ndarray) -> np.ndarray:
    """The waveform (S,) without silence at its ends; 50 ms stay. High frequencies weigh more: fricatives are weak."""
    power = spectra(audio, np.arange(0, len(audio), STEP)) @ np.linspace(0, 1, FFT_SIZE // 2 + 1) ** 2
    loud = np.flatnonzero(power > power.max() * 10 ** (-TRIM_DB / 10)) * STEP
    return audio[max(loud[0] - 5 * STEP, 0) : loud[-1] + 6 * STEP]


def spectra(audio: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Power spectra of the frames around these samples: (S,), (T,) -> (T, FFT_SIZE / 2 + 1)."""
    padded = np.pad(audio, WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[centres] * np.hanning(WINDOW)
    return np.abs(np.fft.rfft(frames, FFT_SIZE)) ** 2


def mel_edges() -> np.ndarray:
    """Edges and centres of the filters in Hz, (NUM_MELS + 2,): evenly spaced on the mel scale."""
    lowest, highest = (2595 * np.log10(1 + hz / 700) for hz in (LOWEST_HZ, HIGHEST_HZ))
    return 700 * (10 ** (np.linspace(lowest, highest, NUM_MELS + 2) / 2595) - 1)


def filters(edges: np.ndarray) -> np.ndarray:
    """Triangles of sum 1: (NUM_MELS + 2,) -> (FFT_SIZE / 2 + 1, NUM_MELS)."""
    hz = np.linspace(0, SAMPLE_RATE / 2, FFT_SIZE // 2 + 1)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    weights = np.minimum((hz - left) / (centre - left), (right - hz) / (right - centre)).clip(0)
    return weights / (weights.sum(0) + 1e-3)


def decibels(power: np.ndarray) -> np.ndarray:
    """Relative to the loudest frames, with a floor: (T, NUM_MELS) -> (T, NUM_MELS)."""
    return 10 * np.log10(power / (loudness(power) + 1e-9) + 10 ** (-FLOOR_DB / 10))


def loudness(power: np.ndarray) -> float:
    return float(np.quantile(power.mean(1), 0.95))


class SpeakerScale:
    """Maps every feature so that its values over a speaker's loud frames have a normal distribution (de la Torre et al.
    2005, Histogram Equalization of Speech Representation for Robust Speech Recognition): speakers, microphones and
    rooms differ less then.
    """

    def __init__(self, recordings: Sequence[Recording]) -> None:
        weights = filters(mel_edges())
        frames = []
        for recording in recordings:
            power = spectra(recording.audio, np.arange(0, len(recording.audio), STEP)) @ weights
            frames.append(decibels(power)[power.mean(1) > loudness(power) * 10 ** (-LOUD_DB / 10)])
        shares = np.linspace(0.005, 0.995, NUM_QUANTILES)
        self.values = np.quantile(np.concatenate(frames), shares, axis=0)  # (NUM_QUANTILES, NUM_MELS)
        self.targets = ndtri(shares)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(T, NUM_MELS) dB -> (T, NUM_MELS), between the outermost quantiles."""
        columns = [np.interp(*pair, self.targets) for pair in zip(values.T, self.values.T, strict=True)]
        return np.stack(columns, axis=1)


@dataclass(frozen=True)
class Voice:
    """How a string is spoken and recorded: all zero for what is really there, else the most that may change."""

    gain_db: float = 0.0
    """Of every digit."""
    tempo: float = 0.0
    """Natural logarithm of the factor, of the string and again of every quarter of a second."""
    warp: float = 0.0
    """Natural logarithm of the factor of all frequencies, as from the length of the vocal tract (Jaitly and Hinton
    2013, Vocal Tract Length Perturbation improves speech recognition)."""
    bend: float = 0.0
    """The same at four points of the frequency axis by themselves, with straight lines between: single formants."""
    noise: float = 0.0
    """Part of the strings with noise, 5 to 40 dB below the speech, with a spectrum that bends by up to 10 dB."""
    response: float = 0.0
    """Added to the features at six points, with straight lines between: another frequency response."""

    def centres(self, num_samples: int, rng: np.random.Generator) -> np.ndarray:
        """The middles of the frames, (T,) samples."""
        steps = np.arange(0, num_samples, STEP)
        tempo = curve(rng, self.tempo, num_samples * 4 // SAMPLE_RATE + 2, len(steps)) + self._draw(rng, self.tempo)
        frames = np.concatenate([[0.0], np.cumsum(np.exp(-tempo))])
        return np.interp(np.arange(int(frames[-1])), frames, [*steps, num_samples]).astype(int)

    def filters(self, rng: np.random.Generator) -> np.ndarray:
        edges = mel_edges()
        edges = edges * np.exp(self._draw(rng, self.warp) + curve(rng, self.bend, 4, len(edges)))
        limit = HIGHEST_HZ  # what would lie above is pressed together below the half of the sample rate
        edges = np.where(edges > limit, limit + (edges - limit) * 0.05, edges)
        return filters(np.maximum.accumulate(edges + 0.01 * np.arange(len(edges))))

    def noisy(self, power: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Power of speech and noise, (T, NUM_MELS); that of noise in a filter is about Gamma distributed."""
        if rng.random() >= self.noise:
            return power
        shape = 10 ** (curve(rng, 10.0, 6, NUM_MELS) / 10)
        level = loudness(power) * 10 ** (-rng.uniform(5, 40) / 10)
        return power + level * shape / shape.mean() * rng.gamma(2.0, 0.5, power.shape)

    @staticmethod
    def _draw(rng: np.random.Generator, most: float) -> float:
        return rng.uniform(-most, most)


AS_RECORDED = Voice()
VARIED = Voice(gain_db=6.0, tempo=0.3, warp=0.15, bend=0.05, noise=0.5, response=0.3)


def curve(rng: np.random.Generator, most: float, num_knots: int, size: int) -> np.ndarray:
    """Straight lines between random numbers from -most to most, (size,)."""
    return np.interp(np.linspace(0, num_knots - 1, size), np.arange(num_knots), rng.uniform(-most, most, num_knots))


def strings(
    recordings: Sequence[Recording], num: int, voice: Voice, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Waveforms (S,) and digits of `num` random strings."""
    for _ in range(num):
        chosen = [recordings[i] for i in rng.integers(len(recordings), size=rng.integers(1, MAX_DIGITS + 1))]
        pauses = [np.zeros(int(rng.uniform(*PAUSE) * SAMPLE_RATE)) for _ in range(len(chosen) + 1)]
        pieces = [pauses[0]]
        for recording, pause in zip(chosen, pauses[1:], strict=True):
            pieces += [recording.audio * 10 ** (rng.uniform(-voice.gain_db, voice.gain_db) / 20), pause]
        yield np.concatenate(pieces), [recording.digit for recording in chosen]


def features(audio: np.ndarray, scale: SpeakerScale, voice: Voice, rng: np.random.Generator) -> np.ndarray:
    """(S,) -> (T, NUM_MELS), of variance 1."""
    power = voice.noisy(spectra(audio, voice.centres(len(audio), rng)) @ voice.filters(rng), rng)
    return (scale(decibels(power)) + curve(rng, voice.response, 6, NUM_MELS)).astype(np.float32)


def write_strings(
    path: Path, part: str, num: int, recordings: Sequence[Recording], scale: SpeakerScale, seed: int
) -> int:
    """An HDF file of `num` strings with the streams `data` (T, NUM_MELS) and `classes`; how many frames there are."""
    speaker = recordings[0].speaker
    rng = np.random.default_rng([seed, zlib.crc32(f"{part} {speaker}".encode())])
    voice = VARIED if part == "train" else AS_RECORDED
    specs = {"data": TensorSpec(dim=NUM_MELS), "classes": TensorSpec(dim=10, sparse=True)}
    num_frames = 0
    with HDFWriter(path, specs, labels={"classes": [str(d) for d in range(10)]}, overwrite=True) as writer:
        for number, (audio, digits) in enumerate(strings(recordings, num, voice, rng)):
            frames = features(audio, scale, voice, rng)
            streams = {"data": frames, "classes": np.array(digits, dtype=np.int32)}
            writer.write(f"{part}-{speaker}-{number:04d}", streams)
            num_frames += len(frames)
    return num_frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path, help="the folder with the .wav files")
    parser.add_argument("target", type=Path, help="folder to write to")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--strings", type=int, default=NUM_TRAIN, help=f"to train on, for each speaker; default: {NUM_TRAIN}"
    )
    arguments = parser.parse_args()
    target = arguments.target
    by_speaker = read_recordings(arguments.recordings)
    target.mkdir(parents=True, exist_ok=True)
    sizes = {"train": arguments.strings, **NUM_STRINGS}
    indices = {"train": range(10, 10_000), "dev": range(5, 10), "test": range(5), "all": range(10_000)}
    for speaker, recordings in by_speaker.items():
        scale = SpeakerScale(recordings)
        for part, wanted in indices.items():
            chosen = [recording for recording in recordings if recording.index in wanted]
            if not chosen:
                raise UsageError(f"speaker {speaker}: no recordings for {part}, with index {wanted[0]} to {wanted[-1]}")
            file = target / f"{part}.{speaker}.hdf"
            num_frames = write_strings(file, part, sizes[part], chosen, scale, arguments.seed)
            print(f"{file.name}: {sizes[part]} strings, {num_frames} frames", flush=True)
        others = [other for other in by_speaker if other != speaker]
        for part in ("train", "dev"):
            lines = "".join(f"{part}.{other}.hdf\n" for other in others)
            (target / f"{part}.without_{speaker}.txt").write_text(lines)


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"ERROR: {error}")
