"""`run=FOLDER`: the command line of an old run below the new one, so that groups and keys mean what they did there."""

from __future__ import annotations

import re
from pathlib import Path

from omegaconf import ListConfig

from returnn_hydra.config.compose import NOT_INHERITED, OUTPUTS, OVERRIDES_FILE, load_saved, override_key
from returnn_hydra.config.errors import ConfigError

PLAIN_WORD = re.compile(r"[+~]{0,2}(?!hydra\b)[A-Za-z_][^=\n]*(=|$)")


def with_saved_overrides(words: list[str]) -> list[str]:
    """The command line with the old run's overrides, less those given anew; unchanged without `run=`.

    Only plain `key=value` words count: a file must not bring options of the program or of Hydra.

    Raises:
        ConfigError: the file of the old run's overrides holds something else.
    """
    folder = next((word.split("=", 1)[1] for word in words if word.startswith("run=")), None)
    file = Path(folder) / OVERRIDES_FILE if folder else None
    if file is None or not file.is_file():
        return words
    saved = load_saved(file)
    if not isinstance(saved, ListConfig) or not all(isinstance(word, str) for word in saved):
        raise ConfigError(f"{file}: expected a list of overrides, key=value")
    given = {override_key(word) for word in words if "=" in word}
    given.update(NOT_INHERITED)
    if strange := [word for word in saved if not PLAIN_WORD.match(word)]:
        raise ConfigError(f"{file}: {strange[0]!r} is no override of a key of the configuration")
    kept = [word for word in saved if override_key(word) not in given]
    for word in kept:
        key = override_key(word)
        if key.split(".")[0] in OUTPUTS and "file" in word and not word.endswith("=null"):
            raise ConfigError(
                f"{file}: {word!r}: a saved configuration can't choose where files are written: "
                f"say {key}=... on this command line, or {key}=null for the run's folder"
            )
    return kept + words
