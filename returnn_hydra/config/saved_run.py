"""`run=FOLDER`: the command line of an old run below the new one, so that groups and keys mean what they did there."""

from __future__ import annotations

from pathlib import Path

from omegaconf import ListConfig, OmegaConf

from returnn_hydra.config.compose import NOT_INHERITED, OVERRIDES_FILE, override_key


def with_saved_overrides(words: list[str]) -> list[str]:
    """The command line with the old run's overrides, less those given anew; unchanged without `run=`."""
    folder = next((word.split("=", 1)[1] for word in words if word.startswith("run=")), None)
    file = Path(folder) / OVERRIDES_FILE if folder else None
    if file is None or not file.is_file():
        return words
    saved = OmegaConf.load(file)
    assert isinstance(saved, ListConfig)
    given = {override_key(word) for word in words if "=" in word}
    given.update(NOT_INHERITED)
    return [word for word in (str(item) for item in saved) if override_key(word) not in given] + words
