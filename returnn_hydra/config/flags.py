"""Flags of Hydra's command line (--config-dir, -m, ...) may stand anywhere."""

from __future__ import annotations

from collections.abc import Sequence

WITH_VALUE = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--cfg", "-c", "--package", "-p")
INFO_WORDS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
WITH_WORD = {"--info": INFO_WORDS, "-i": INFO_WORDS}
"""Flags that may be followed by one of these words."""


def flags_first(words: Sequence[str]) -> list[str]:
    """The same command with the flags before the overrides: Hydra takes no overrides on both sides of a flag."""
    flags: list[str] = []
    overrides: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        belongs_to_flag = before in WITH_VALUE or word in WITH_WORD.get(before, ())
        (flags if word.startswith("-") or belongs_to_flag else overrides).append(word)
    return flags + overrides


def is_sweep(words: Sequence[str]) -> bool:
    """Does the command ask Hydra for several jobs?"""
    return any(word in ("-m", "--multirun", "hydra.mode=MULTIRUN") for word in words)
