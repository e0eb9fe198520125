#!/usr/bin/env python3
"""Convert the Japanese Vowels set, as it comes in the sktime wheel, to the HDF files that ship with returnn-hydra.

    pip download --no-deps sktime==1.2.0
    python scripts/make_japanese_vowels.py sktime-1.2.0-py3-none-any.whl

writes train.hdf, dev.hdf and eval.hdf in RETURNN's layout; the same bytes every time. `eval` is the official test part
(370 utterances). The official training part (270: speakers 1..9, 30 each) is split by the utterance's index among those
of its speaker, counted from 0: every index with index % 10 == 9 is dev (27), the others train (243).
"""

from __future__ import annotations

import argparse
import zipfile
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

FOLDER_IN_WHEEL = "sktime/datasets/data/JapaneseVowels"
NUM_CEPSTRA = 12
NUM_SPEAKERS = 9
DEV_EVERY = 10
DEFAULT_TARGET = Path(__file__).parent.parent / "returnn_hydra" / "data" / "japanese_vowels"


@dataclass(frozen=True)
class Utterance:
    """`cepstra` is (T, 12) float32; `speaker` counts from 0, `index` from 0 within the speaker."""

    cepstra: np.ndarray
    speaker: int
    index: int


def parse_ts(text: str) -> list[Utterance]:
    """The utterances of a `.ts` file: after `@data` one per line, its 12 series and its class separated by colons.

    Raises:
        ValueError: a line with another number of series or frames, or another class than 1..9.
    """
    utterances: list[Utterance] = []
    seen = [0] * NUM_SPEAKERS
    lines = text.splitlines()
    start = lines.index("@data") + 1
    for number, line in enumerate(lines[start:], start + 1):
        *series, label = line.strip().split(":")
        values = [np.array(one.split(","), dtype=np.float32) for one in series]
        if len(values) != NUM_CEPSTRA or len({len(one) for one in values}) != 1:
            raise ValueError(
                f"line {number}: expected {NUM_CEPSTRA} series of one length, got {[len(v) for v in values]}"
            )
        speaker = int(label) - 1
        if not 0 <= speaker < NUM_SPEAKERS:
            raise ValueError(f"line {number}: expected a class in 1..{NUM_SPEAKERS}, got {label}")
        utterances.append(Utterance(np.stack(values, axis=1), speaker, seen[speaker]))
        seen[speaker] += 1
    return utterances


def write_hdf(path: Path, part: str, utterances: list[Utterance]) -> None:
    """RETURNN's layout: everything concatenated over time; `classes` has one label per sequence."""
    tags = [f"{part}-speaker{u.speaker + 1}-{u.index:03d}" for u in utterances]
    lengths = np.array([[len(u.cepstra), 1] for u in utterances], dtype=np.int32)  # inputs, classes
    names = [f"speaker{number}" for number in range(1, NUM_SPEAKERS + 1)]
    with h5py.File(path, "w") as file:
        file["inputs"] = np.concatenate([u.cepstra for u in utterances])
        file["seqLengths"] = lengths
        file["seqTags"] = np.array(tags, dtype="S")
        file["labels"] = np.array([], dtype="S5")
        file["targets/data/classes"] = np.array([u.speaker for u in utterances], dtype=np.int32)
        file["targets/labels/classes"] = np.array(names, dtype="S")
        file.create_group("targets/size").attrs["classes"] = np.array([NUM_SPEAKERS, 1], dtype=np.int32)
        counts = {"numTimesteps": int(lengths[:, 0].sum()), "inputPattSize": NUM_CEPSTRA, "numDims": 1}
        for name, value in {**counts, "numLabels": NUM_SPEAKERS, "numSeqs": len(utterances)}.items():
            file.attrs[name] = np.int64(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="the sktime wheel")
    parser.add_argument("target", type=Path, nargs="?", default=DEFAULT_TARGET, help="folder to write to")
    arguments = parser.parse_args()
    with zipfile.ZipFile(arguments.wheel) as wheel:
        official = {
            name: parse_ts(wheel.read(f"{FOLDER_IN_WHEEL}/JapaneseVowels_{name}.ts").decode())
            for name in ("TRAIN", "TEST")
        }
    is_dev = [u.index % DEV_EVERY == DEV_EVERY - 1 for u in official["TRAIN"]]
    parts = {
        "train": [u for u, dev in zip(official["TRAIN"], is_dev, strict=True) if not dev],
        "dev": [u for u, dev in zip(official["TRAIN"], is_dev, strict=True) if dev],
        "eval": official["TEST"],
    }
    arguments.target.mkdir(parents=True, exist_ok=True)
    for part, utterances in parts.items():
        write_hdf(arguments.target / f"{part}.hdf", part, utterances)
        print(f"{part}: {len(utterances)} utterances, {sum(len(u.cepstra) for u in utterances)} frames")


if __name__ == "__main__":
    main()
