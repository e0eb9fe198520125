"""JSON configurations with `//` and `/* */` comments."""

from __future__ import annotations

import json
from typing import Any

from returnn_hydra.config.text_error import ConfigTextError

_HINTS = {
    "'": 'JSON has texts in double quotes: "..."',
    "#": "comments start with // or stand in /* */",
    "T": "JSON writes true",
    "F": "JSON writes false",
    "N": "JSON writes null",
    "}": "no comma before a closing bracket",
    "]": "no comma before a closing bracket",
}


def parse_json_config(text: str, source: str) -> dict[str, Any]:
    """The top-level dict.

    Raises:
        ConfigTextError: with the place, and what JSON wants there.
    """
    plain = blank_comments(text, source)
    try:
        values = json.loads(plain)
    except json.JSONDecodeError as error:
        found = plain[error.pos : error.pos + 1]
        before = plain[: error.pos].rstrip()[-1:]
        hint = _HINTS["}"] if before == "," and found in ("}", "]", '"') and error.msg.startswith("Illegal") else ""
        raise ConfigTextError(
            error.msg, source=source, line=error.lineno, column=error.colno, hint=hint or _HINTS.get(found, "")
        ) from error
    except RecursionError as error:
        raise ConfigTextError("too many brackets", source=source) from error
    except ValueError as error:  # a number with too many digits
        raise ConfigTextError(str(error), source=source) from error
    if not isinstance(values, dict):
        raise ConfigTextError("expected { key: value, ... } at the top", source=source)
    return values


def blank_comments(text: str, source: str = "text") -> str:
    """The text with spaces in place of comments, so that places in it stay the same; texts in quotes are left alone."""
    pieces = []
    at = 0
    while at < len(text):
        if text[at] == '"':
            end = _after_string(text, at)
            pieces.append(text[at:end])
        elif text.startswith("//", at):
            newline = text.find("\n", at)
            end = len(text) if newline < 0 else newline
            pieces.append(" " * (end - at))
        elif text.startswith("/*", at):
            close = text.find("*/", at + 2)
            if close < 0:
                line = text.count("\n", 0, at) + 1
                column = at - text.rfind("\n", 0, at)
                raise ConfigTextError("the comment has no */", source=source, line=line, column=column)
            end = close + 2
            pieces.append("".join("\n" if sign == "\n" else " " for sign in text[at:end]))
        else:
            end = at + 1
            pieces.append(text[at])
        at = end
    return "".join(pieces)


def _after_string(text: str, start: int) -> int:
    """The position behind the text in quotes that begins at `start`; at a line end if it has no closing quote."""
    at = start + 1
    while at < len(text) and text[at] not in '"\n':
        at += 2 if text[at] == "\\" else 1
    return min(at + 1, len(text))
