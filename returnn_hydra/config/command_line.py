"""RETURNN's command line: `rnn.py FILE ... [options] [++key value] ...`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from returnn_hydra.config.errors import ConfigError, nearest

SHORT = {
    "x": "task",
    "b": "batch_size",
    "r": "learning_rate",
    "n": "num_epochs",
    "e": "epoch",
    "l": "log",
    "v": "log_verbosity",
    "L": "load",
    "u": "device",
    "c": "chunking",
    "E": "eval",
    "i": "save_interval",
    "k": "output_file",
    "o": "batching",
    "w": "window",
    "z": "max_seqs",
}
"""Short options and the keys they set."""
LONG = {
    **{key: key for key in SHORT.values()},
    "verbose": "log_verbosity",
    "max_sequences": "max_seqs",
    "order": "batching",
}
"""Long options; a unique beginning is enough."""
GONE = {
    "a": "activation",
    "d": "description",
    "f": "gate_factors",
    "g": "lreg",
    "j": "dropout",
    "m": "momentum",
    "p": "loss",
    "q": "cache",
    "s": "hidden_sizes",
    "t": "truncate",
    "y": "hidden_type",
}
"""Options of RETURNN's Theano years."""
_NUMBER = re.compile(r"[+-]?(\d|\.\d).*")
_USAGE = "expected: FILE ... [options] [++key value] ..."


@dataclass(frozen=True)
class CommandLine:
    """What the user asked for."""

    files: list[str] = field(default_factory=list)
    overrides: list[tuple[str, str]] = field(default_factory=list)
    """(key, value) in their order, as texts."""
    show_version: bool = False
    show_help: bool = False


def help_text() -> str:
    """The options, for --help."""
    short = {key: f"-{letter}" for letter, key in SHORT.items()}
    long = {key: " ".join(f"--{option}" for option in LONG if LONG[option] == key) for key in LONG.values()}
    options = [f"  {short.get(key, ''):4}{names:28}sets {key}" for key, names in sorted(long.items())]
    return "\n".join(
        [
            "Run RETURNN configurations: FILE ... [options] [++key value] ...",
            "e.g. my.config ++num_epochs 5 ++device cpu; any key of docs/returnn.md can be set with ++key value.",
            *options,
            f"  {'-V':4}{'--version':28}the version",
        ]
    )


def parse_command_line(words: Sequence[str]) -> CommandLine:
    """Split the words behind the program's name.

    A negative number is `++key +-3`, as in RETURNN, or just `++key -3`.

    Raises:
        ConfigError: an unknown option, an option without a value, a word that belongs to nothing.
    """
    files: list[str] = []
    overrides: list[tuple[str, str]] = []
    show_version = show_help = False
    rest = list(words)
    while rest and not rest[0].startswith(("+", "-")):
        files.append(rest.pop(0))
    while rest:
        word = rest.pop(0)
        if word in ("-V", "--version"):
            show_version = True
        elif word in ("-h", "--help"):
            show_help = True
        elif word == "--config":
            files.append(_value_of(word, rest))
        elif word.startswith("++"):
            overrides.append(_override(word, rest))
        elif word.startswith("--"):
            name, equals, attached = word[2:].partition("=")
            overrides.append((_long(name), attached if equals else _value_of(word, rest)))
        elif word.startswith("-") and len(word) > 1 and not _NUMBER.fullmatch(word):
            overrides.append((_short(word[1]), word[2:] or _value_of(word, rest)))
        else:
            raise ConfigError(f"command line: the word {word!r} belongs to nothing{_suggest(word)}; {_USAGE}")
    return CommandLine(files, overrides, show_version, show_help)


def _override(word: str, rest: list[str]) -> tuple[str, str]:
    key = word[2:]
    if not key:
        raise ConfigError(f"command line: a key is missing after '++'; {_USAGE}")
    if "=" in key:
        name, _, value = key.partition("=")
        raise ConfigError(f"command line: {word!r} has a '='; write ++{name} {value or 'VALUE'}")
    return key, _value_of(word, rest)


def _value_of(word: str, rest: list[str]) -> str:
    """The word behind an option."""
    if not rest:
        raise ConfigError(f"command line: {word} has no value; {_USAGE}")
    value = rest[0]
    if value.startswith("+-") or (value.startswith("+") and _NUMBER.fullmatch(value)):
        value = value[1:]
    elif value.startswith(("++", "--")) or (value.startswith("-") and len(value) > 1 and not _NUMBER.fullmatch(value)):
        raise ConfigError(
            f"command line: {word} has no value, the next word is {value!r}; "
            f"a text that starts with '-' is written +{value}"
        )
    rest.pop(0)
    return value


def _short(letter: str) -> str:
    if letter in SHORT:
        return SHORT[letter]
    if letter in GONE:
        raise ConfigError(
            f"command line: -{letter} ({GONE[letter]}) has had no effect since RETURNN's Theano years; "
            f"a key is set with ++{GONE[letter]} VALUE"
        )
    known = " ".join(f"-{name} {key}" for name, key in SHORT.items())
    raise ConfigError(f"command line: unknown option -{letter}; there is: {known}")


def _long(name: str) -> str:
    """The key of a long option, which may be shortened as long as it is unique."""
    found = {key for option, key in LONG.items() if option.startswith(name)}
    if name in LONG:
        return LONG[name]
    if len(found) == 1:
        return found.pop()
    if found:
        raise ConfigError(f"command line: --{name} may be {', '.join('--' + key for key in sorted(found))}")
    raise ConfigError(
        f"command line: unknown option --{name}{nearest(name, LONG)}; any key can be set with ++{name} VALUE"
    )


def _suggest(word: str) -> str:
    if "=" in word:
        key, _, value = word.partition("=")
        return f"; did you mean ++{key.lstrip('+')} {value}?"
    return ""
