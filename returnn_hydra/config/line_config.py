"""RETURNN's oldest syntax: one `key value` per line.

    # a comment
    num_epochs 5
    hidden_size 100,200,300      # a comma makes a list of texts
    include base.config

Values are texts; whoever reads them gives them a type. Unlike RETURNN, `#` only starts a comment at the start of a
line or after a space (`http://host/a#b` stays whole), and `key = value` is an error instead of the value `= value`.
"""

from __future__ import annotations

from dataclasses import dataclass

from returnn_hydra.config.text_error import ConfigTextError


@dataclass(frozen=True)
class Line:
    """One entry."""

    key: str
    values: list[str]
    line: int

    @property
    def is_include(self) -> bool:
        return self.key == "include"


def parse_line_config(text: str, source: str) -> list[Line]:
    """The entries in their order.

    Raises:
        ConfigTextError: a key without a value, or `key = value`.
    """
    entries = []
    for number, raw in enumerate(text.split("\n"), start=1):
        content = _without_comment(raw).strip()
        if not content:
            continue
        key, *rest = content.split(None, 1)
        column = raw.index(key) + 1
        if not rest:
            raise ConfigTextError(
                f"the key {key!r} has no value",
                source=source,
                line=number,
                column=column,
                hint="write `key value`; a Python file starts with #! or ends in .py, a JSON file starts with {",
            )
        if rest[0].startswith("=") and not rest[0].startswith("=="):
            raise ConfigTextError(
                f"'=' after the key {key!r}",
                source=source,
                line=number,
                column=raw.index("=", column - 1 + len(key)) + 1,
                hint="write `key value`; a Python file starts with #! or ends in .py",
            )
        entries.append(Line(key, split_value(rest[0]), number))
    return entries


def split_value(text: str) -> list[str]:
    """The texts between commas; a comma at the very start doesn't count."""
    return text.split(",") if text.find(",") > 0 else [text]


def _without_comment(line: str) -> str:
    at = line.find("#")
    while at > 0 and not line[at - 1].isspace():
        at = line.find("#", at + 1)
    return line if at < 0 else line[:at]
