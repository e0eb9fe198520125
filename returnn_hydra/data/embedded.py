"""The data that ships with the package."""

from __future__ import annotations

from pathlib import Path

from returnn_hydra.data.hdf import HDFDataset

FOLDER = Path(__file__).parent / "japanese_vowels"
PARTS = ("train", "dev", "eval")


def japanese_vowels(part: str, cache: str = "auto") -> HDFDataset:
    """Japanese Vowels (Kudo, Toyama and Shimbo 1999): streams `data` (T, 12) and `classes`, one speaker per utterance.

    Args:
        part: train or dev (together the official training part), or eval (the official test part).
        cache: of HDFDataset.
    """
    if part not in PARTS:
        raise ValueError(f"part={part!r}: expected one of {', '.join(PARTS)}")
    return HDFDataset(str(FOLDER / f"{part}.hdf"), cache=cache)
