"""An error at a place in a text: a file or a word of the command line."""

from __future__ import annotations

from returnn_hydra.config.errors import ConfigError


class ConfigTextError(ConfigError, ValueError):
    """The text can't be used; says where and what to write instead."""

    def __init__(self, message: str, *, source: str, line: int = 1, column: int = 1, hint: str = "") -> None:
        self.source = source
        self.line = line
        self.column = column
        self.hint = hint
        super().__init__(f"{source}, line {line}, column {column}: {message}" + (f"; {hint}" if hint else ""))
