#!/usr/bin/env python3
"""Make the files of the connected digits recipe out of the Free Spoken Digit Dataset (Jackson et al., CC BY-SA 4.0).

    python scripts/prepare_digits.py PATH/TO/recordings data/digits

The recordings are `<digit>_<speaker>_<index>.wav`; as many speakers as there are. A string is 1 to 7 recordings of one
speaker with pauses of silence around them. Written are, for every speaker S,

    train.S.hdf      strings of the recordings with index 10 and up, with augmentation: see `augmented`
    dev.S.hdf        strings of index 5 to 9
    test.S.hdf       strings of index 0 to 4 (the test part by convention)
    all.S.hdf        strings of all recordings, to test on when S was held out of training
    train.without_S.txt, dev.without_S.txt   the train and dev files of the others

The features are 24 log-mel energies, every feature with mean 0 and standard deviation 1 over the string. Everything
that is written is a function of the recordings and the seed.
"""

from __future__ import annotations

import argparse
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.audio_file import read_audio
from returnn_hydra.data.features import AudioFeatures
from returnn_hydra.data.hdf_writer import HDFWriter
from returnn_hydra.data.perturb import change_speed

SAMPLE_RATE = 8_000
NUM_MELS = 24
"""Filters so wide that they do not resolve the harmonics of the voice."""
STEP = 0.010
"""Seconds between frames."""
MAX_DIGITS = 7
PAUSE = (0.05, 0.35)
"""Shortest and longest pause, in seconds."""
SPEEDS = (0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3)
TEMPOS = (0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4)
SNR_DB = (3.0, 35.0)
EQUALIZER_DB, EQUALIZER_KNOTS = 8.0, 8
GAIN_DB = 6.0
"""Largest difference of a digit to the string."""
NUM_STRINGS = {"train": 1600, "dev": 60, "test": 100, "all": 200}
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
        ValueError: no recordings, a file with another kind of name, or another sample rate.
    """
    found: dict[str, list[Recording]] = {}
    for file in sorted(folder.glob("*.wav")):
        match = re.fullmatch(r"(\d)_(\w+)_(\d+)", file.stem)
        if match is None:
            raise ValueError(f"{file}: expected a name like 7_jackson_32.wav")
        audio, rate = read_audio(file, str(file))
        if rate != SAMPLE_RATE or audio.ndim != 1:
            raise ValueError(f"{file}: {rate} Hz, shape {audio.shape}; expected one channel of {SAMPLE_RATE} Hz")
        recording = Recording(int(match[1]), match[2], int(match[3]), audio)
        found.setdefault(recording.speaker, []).append(recording)
    if not found:
        raise ValueError(f"{folder}: no .wav files")
    return dict(sorted(found.items()))


def strings(
    recordings: Sequence[Recording], num: int, rng: np.random.Generator, gain_db: float = 0.0
) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Waveforms (S,) and digits of `num` random strings; each digit is up to `gain_db` louder or softer."""
    for _ in range(num):
        chosen = [recordings[i] for i in rng.integers(len(recordings), size=rng.integers(1, MAX_DIGITS + 1))]
        pauses = [np.zeros(int(rng.uniform(*PAUSE) * SAMPLE_RATE)) for _ in range(len(chosen) + 1)]
        pieces = [pauses[0]]
        for recording, pause in zip(chosen, pauses[1:], strict=True):
            pieces += [recording.audio * 10 ** (rng.uniform(-gain_db, gain_db) / 20), pause]
        yield np.concatenate(pieces), [recording.digit for recording in chosen]


def augmented(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The waveform (S,) as another speaker, room and microphone might have given it: another speed (pitch and formants
    go along), another frequency response, and for three of four strings noise.
    """
    audio = equalized(change_speed(audio, SPEEDS[rng.integers(len(SPEEDS))]), rng)
    if rng.random() < 0.75:
        noise = equalized(rng.standard_normal(len(audio)), rng)
        level = np.sqrt((audio**2).mean() / (noise**2).mean())
        audio = audio + noise * level * 10 ** (-rng.uniform(*SNR_DB) / 20)
    return audio


def equalized(audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The waveform (S,) with random gains at some frequencies, and straight lines in dB between these."""
    spectrum = np.fft.rfft(audio)
    knots = rng.uniform(-EQUALIZER_DB, EQUALIZER_DB, EQUALIZER_KNOTS)
    gains = np.interp(np.linspace(0, EQUALIZER_KNOTS - 1, len(spectrum)), np.arange(EQUALIZER_KNOTS), knots)
    return np.fft.irfft(spectrum * 10 ** (gains / 20), n=len(audio))


def features(tempo: float = 1.0) -> AudioFeatures:
    """Log-mel energies; `tempo` 2 halves the number of frames, and the pitch stays."""
    return AudioFeatures(
        features="log_mel_filterbank",
        num_feature_filters=NUM_MELS,
        step_len=STEP * tempo,
        norm_mean="per_seq",
        norm_std_dev="per_seq",
        sample_rate=SAMPLE_RATE,
    )


def write_strings(path: Path, part: str, recordings: Sequence[Recording], seed: int) -> int:
    """An HDF file with the streams `data` (T, 24) and `classes`; how many frames there are."""
    speaker = recordings[0].speaker
    rng = np.random.default_rng([seed, zlib.crc32(f"{part} {speaker}".encode())])
    extractors = [features(tempo) for tempo in TEMPOS] if part == "train" else [features()]
    specs = {"data": extractors[0].spec, "classes": TensorSpec(dim=10, sparse=True)}
    gain_db = GAIN_DB if part == "train" else 0.0
    num_frames = 0
    with HDFWriter(path, specs, labels={"classes": [str(d) for d in range(10)]}, overwrite=True) as writer:
        for number, (audio, digits) in enumerate(strings(recordings, NUM_STRINGS[part], rng, gain_db)):
            tag = f"{part}-{speaker}-{number:04d}"
            audio = augmented(audio, rng) if part == "train" else audio
            frames = extractors[rng.integers(len(extractors))](audio, SAMPLE_RATE, seq_tag=tag)
            writer.write(tag, {"data": frames, "classes": np.array(digits, dtype=np.int32)})
            num_frames += len(frames)
    return num_frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path, help="the folder with the .wav files")
    parser.add_argument("target", type=Path, help="folder to write to")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    target = arguments.target
    target.mkdir(parents=True, exist_ok=True)
    by_speaker = read_recordings(arguments.recordings)
    indices = {"train": range(10, 10_000), "dev": range(5, 10), "test": range(5), "all": range(10_000)}
    for speaker, recordings in by_speaker.items():
        for part, wanted in indices.items():
            chosen = [recording for recording in recordings if recording.index in wanted]
            if not chosen:
                raise ValueError(f"speaker {speaker}: no recordings for {part}, with index {wanted[0]} to {wanted[-1]}")
            num_frames = write_strings(target / f"{part}.{speaker}.hdf", part, chosen, arguments.seed)
            print(f"{part}.{speaker}.hdf: {NUM_STRINGS[part]} strings, {num_frames} frames", flush=True)
        others = [other for other in by_speaker if other != speaker]
        for part in ("train", "dev"):
            lines = "".join(f"{part}.{other}.hdf\n" for other in others)
            (target / f"{part}.without_{speaker}.txt").write_text(lines)


if __name__ == "__main__":
    main()
