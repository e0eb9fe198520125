"""The answer to `--help`, from the names of the configuration files alone: composing takes three times as long."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from returnn_hydra.config.paths import config_dir

HELP_WORDS = ("--help", "-h")
CONFIG_DIR_WORDS = ("--config-dir", "-cd")
TEXT = """\
returnn-hydra runs one experiment with a sequence model, e.g. `python run.py task=train model=blstm`.

== Groups (group=option) ==
{groups}

Show the composed configuration: --cfg job --resolve.   Sweep: -m optimizer=adam,sgd seed=1,2
Use an old run: run=outputs/NAME task=forward load_epoch=best
Flags of Hydra: --hydra-help"""


def wants_help(words: Sequence[str]) -> bool:
    """Whether the command line asks for help, whatever else it says."""
    return any(word in HELP_WORDS for word in words)


def help_text(words: Sequence[str]) -> str:
    """What `--help` prints: the groups and their options in conf/ and in the folders that `--config-dir` adds."""
    options = options_by_group([config_dir(), *config_folders(words)])
    groups = "\n".join(f"{group}: {', '.join(names)}" for group, names in options.items())
    return TEXT.format(groups=groups)


def options_by_group(folders: Sequence[Path]) -> dict[str, list[str]]:
    """The YAML files below each folder by the subfolder they are in, both sorted."""
    options: dict[str, set[str]] = {}
    for folder in folders:
        for file in folder.rglob("*.yaml"):
            group = file.parent.relative_to(folder).as_posix()
            if group != ".":
                options.setdefault(group, set()).add(file.stem)
    return {group: sorted(names) for group, names in sorted(options.items())}


def config_folders(words: Sequence[str]) -> list[Path]:
    """What `--config-dir FOLDER` or `--config-dir=FOLDER` name."""
    folders: list[str] = []
    for index, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in CONFIG_DIR_WORDS:
            folders += [value] if equals else words[index + 1 : index + 2]
    return [Path(folder) for folder in folders]
