"""Values written as text: numbers, words, lists and dicts in the manner of Python, JSON or YAML. Nothing is evaluated.

3   1e-3   true   None   "a, b"   [1, 2]   (1, 2)   {"class": "adam", epsilon: 1e-8}   any other words
"""

from __future__ import annotations

import ast
import re
import types
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from returnn_hydra.config.text_error import ConfigTextError

_INT = re.compile(r"[+-]?\d+(_\d+)*", re.ASCII)
_FLOAT = re.compile(r"[+-]?(\d+(_\d+)*\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("none", "null", "~"), None),
    **dict.fromkeys(("true",), True),
    **dict.fromkeys(("false",), False),
    **{
        f"{sign}{dot}{word}": float(f"{sign}{word}")
        for word in ("inf", "nan", "infinity")
        for sign in ("", "+", "-")
        for dot in ("", ".")
    },
}
_YES = ("true", "yes", "on", "1")
_NO = ("false", "no", "off", "0")
BRACKETS = ("[", "(", "{", "'", '"')
"""What a structured value starts with."""
_CLOSING = {"[": "]", "(": ")", "{": "}"}
_MAX_DEPTH = 50
_MAX_DIGITS = 4000


def to_bool(value: str) -> bool:
    """RETURNN's words for a truth value, whatever their case; an integer is true unless it is 0.

    Raises:
        ValueError: any other text.
    """
    word = value.strip().lower()
    if word in _YES or word in _NO:
        return word in _YES
    if _INT.fullmatch(word) and len(word) <= _MAX_DIGITS:
        return int(word) != 0
    raise ValueError(f"{value!r}: expected one of {', '.join((*_YES, *_NO))}")


def parse_scalar(text: str) -> Any:
    """None, a truth value or a number if the text is one, else the text."""
    word = text.strip()
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    if _INT.fullmatch(word) and len(word) <= _MAX_DIGITS:
        return int(word)
    if _FLOAT.fullmatch(word) and len(word) <= _MAX_DIGITS:
        return float(word)
    return text


def parse_literal(text: str, source: str = "value") -> Any:
    """The value of a text; what has no brackets and quotes and is no number or known word is the text itself.

    Args:
        source: where the text is from, for the error.

    Raises:
        ConfigTextError: brackets or quotes that don't fit together.
    """
    stripped = text.strip()
    if not stripped or stripped[0] not in BRACKETS:
        return parse_scalar(stripped)
    reader = _Reader(stripped, source)
    value = reader.value(0)
    reader.skip_space()
    if reader.at < len(stripped):
        reader.fail(f"unexpected {stripped[reader.at]!r} after the end of the value")
    return value


class _Reader:
    """Reads values from left to right."""

    def __init__(self, text: str, source: str) -> None:
        self.text = text
        self.source = source
        self.at = 0

    def fail(self, message: str, at: int | None = None) -> typing.NoReturn:
        here = self.at if at is None else at
        line = self.text.count("\n", 0, here) + 1
        column = here - (self.text.rfind("\n", 0, here) + 1) + 1
        raise ConfigTextError(
            f"{message} in {self.text[:60]!r}",
            source=self.source,
            line=line,
            column=column,
            hint="put quotes around a text with brackets or quotes",
        )

    def skip_space(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def peek(self) -> str:
        self.skip_space()
        return self.text[self.at : self.at + 1]

    def value(self, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            self.fail("too many brackets")
        first = self.peek()
        if first in ("'", '"'):
            return self.quoted(first)
        if first == "{":
            return self.mapping(depth)
        if first in ("[", "("):
            return self.sequence(first, depth)
        return parse_scalar(self.bare())

    def quoted(self, quote: str) -> str:
        end = self.at + 1
        while end < len(self.text) and self.text[end] != quote:
            end += 2 if self.text[end] == "\\" else 1
        if end >= len(self.text):
            self.fail(f"no closing {quote}")
        word = self.text[self.at : end + 1]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of \d and the like, which stay as they are
                value = ast.literal_eval(word.replace("\n", "\\n").replace("\r", "\\r"))
        except (ValueError, SyntaxError, UnicodeError):
            self.fail("a text with a wrong escape")
        self.at = end + 1
        return str(value).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")  # joins JSON's pairs

    def bare(self) -> str:
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in ",:[](){}'\"\n":
            self.at += 1
        word = self.text[start : self.at].strip()
        if not word:
            self.fail(
                f"a value is missing before {self.text[self.at : self.at + 1]!r}" if self.peek() else "it ends early"
            )
        return word

    def sequence(self, opening: str, depth: int) -> Any:
        start = self.at
        self.at += 1
        values: list[Any] = []
        comma = False
        while self.peek() != _CLOSING[opening]:
            if not self.peek():
                self.fail(f"no closing {_CLOSING[opening]!r}", start)
            values.append(self.value(depth + 1))
            comma = self.separator(_CLOSING[opening])
        self.at += 1
        if opening == "[":
            return values
        return values[0] if len(values) == 1 and not comma else tuple(values)

    def mapping(self, depth: int) -> dict[Any, Any]:
        start = self.at
        self.at += 1
        values: dict[Any, Any] = {}
        while self.peek() != "}":
            if not self.peek():
                self.fail("no closing '}'", start)
            place = self.at
            key = self.value(depth + 1)
            if not isinstance(key, str | int | float | bool | None):
                self.fail("a key must be a text or a number", place)
            if self.peek() != ":":
                self.fail(f"expected ':' after the key {key!r}")
            self.at += 1
            values[key] = self.value(depth + 1)
            self.separator("}")
        self.at += 1
        return values

    def separator(self, closing: str) -> bool:
        """Skip a comma; whether there was one."""
        found = self.peek()
        if found == ",":
            self.at += 1
            return True
        if found and found != closing:
            self.fail(f"expected ',' or {closing!r}")
        return False


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value has a type: plain types, lists and dicts of them, callables, unions. An int is a float too."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if annotation is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in arguments)
    if annotation is None or annotation is type(None):
        return value is None
    if origin is typing.Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is Callable or origin is Callable or origin is typing.get_origin(Callable[..., Any]):
        return callable(value)
    if origin is list or annotation is list:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            return False
        return not arguments or all(fits(item, arguments[0]) for item in value)
    if origin is dict or annotation is dict:
        return isinstance(value, Mapping) and (
            not arguments or all(fits(key, arguments[0]) and fits(item, arguments[1]) for key, item in value.items())
        )
    return isinstance(value, annotation) if isinstance(annotation, type) else True


def parse_typed(text: str, annotation: Any, source: str) -> Any:
    """The value of a text for a declared type: `"5"` is a text where texts are wanted, and 5 where numbers are.

    Raises:
        ConfigTextError: the text is no such value.
    """
    options = _options(annotation)
    if str in options and not any(option in (int, float, bool, None, type(None)) for option in options):
        structured = text.strip()[:1] in ("{", "[", "(") and len(options) > 1
        value: Any = parse_literal(text, source) if structured else text
        return value if fits(value, annotation) else text
    try:
        value = parse_literal(text, source)
    except ConfigTextError:
        if str in options:
            return text
        raise
    if bool in options and (isinstance(value, str) or (isinstance(value, int) and int not in options)):
        try:
            return to_bool(text)
        except ValueError:
            pass
    if isinstance(value, float) and value.is_integer() and not fits(value, annotation) and fits(int(value), annotation):
        return int(value)
    if fits(value, annotation):
        return float(value) if isinstance(value, int) and _only_float(options, value) else value
    if str in options:
        return text
    items = [parse_scalar(part) for part in text.split(",")]
    if fits(items, annotation):
        return items
    raise ConfigTextError(f"{text!r} is no {describe(annotation)}", source=source)


def _options(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _only_float(options: Sequence[Any], value: int) -> bool:
    return float in options and int not in options and not isinstance(value, bool) and abs(value) < 2**53


def describe(annotation: Any) -> str:
    """A type in words for an error message."""
    options = _options(annotation)
    if len(options) > 1:
        return " or ".join(describe(option) for option in options)
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(annotation)))
    if annotation is None or annotation is type(None):
        return "None"
    if annotation is Callable or typing.get_origin(annotation) is typing.get_origin(Callable[..., Any]):
        return "function"
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is list and arguments:
        return f"list of {describe(arguments[0])}"
    if typing.get_origin(annotation) is dict:
        return "dict"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
