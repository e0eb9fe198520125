"""Cleaners of transcriptions: functions str -> str under the names that RETURNN and Tacotron setups use.

`text_cleaner` makes one of a name, a call with literal arguments, or several of them. Numbers become American English
words, years as they are spoken; the rules are those of RETURNN's cleaners, and of the inflect package that they use.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from typing import Any

from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.files import nearest
from returnn_hydra.extras import require

Cleaner = Callable[[str], str]
CleanerLike = Cleaner | str | Sequence[Any]
"""What `text_cleaner` takes."""

_ABBREVIATIONS = {
    "mrs": "misses", "ms": "miss", "mr": "mister", "dr": "doctor", "st": "saint", "co": "company", "jr": "junior",
    "maj": "major", "gen": "general", "drs": "doctors", "rev": "reverend", "lt": "lieutenant", "hon": "honorable",
    "sgt": "sergeant", "capt": "captain", "esq": "esquire", "ltd": "limited", "col": "colonel", "ft": "fort",
}  # fmt: skip
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_THOUSANDS = ["", *"thousand million billion trillion quadrillion quintillion sextillion septillion".split()]
_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip


def collapse_whitespace(text: str) -> str:
    """One space between words, none around them."""
    return " ".join(text.split())


def lowercase(text: str) -> str:
    return text.lower()


def lowercase_keep_special(text: str) -> str:
    """Lower case, but for words like [noise] and <unk>."""

    def lower(match: re.Match[str]) -> str:
        return match[0] if re.match(r"\[\S*\]|<\S*>", match[0]) else match[0].lower()

    return re.sub(r"\S+", lower, text)


def convert_to_ascii(text: str) -> str:
    """Letters with accents, other scripts and the like as ASCII.

    Raises:
        MissingExtra: the text is not ASCII already, and the package unidecode, which knows how, is not there.
    """
    if text.isascii():
        return text
    what = f"a text cleaner (other than basic_cleaners), for {text!r}, which is not ASCII,"
    return str(require("unidecode", "text", what).unidecode(text))


def expand_abbreviations(text: str) -> str:
    """mr. -> mister, dr. -> doctor, ..., in any case."""
    pattern = rf"\b({'|'.join(_ABBREVIATIONS)})\."
    return re.sub(pattern, lambda match: _ABBREVIATIONS[match[1].lower()], text, flags=re.IGNORECASE)


def normalize_numbers(text: str, with_spacing: bool = False) -> str:
    """Numbers, amounts of dollars and pounds, and ordinals as words.

    Args:
        with_spacing: with a space on both sides of every number.
    """
    text = re.sub(r"[0-9][0-9,]+[0-9]", lambda match: match[0].replace(",", ""), text)
    text = re.sub(r"£([0-9,]*[0-9]+)", r"\1 pounds", text)
    text = re.sub(r"\$([0-9.,]*[0-9]+)", lambda match: _dollars(match[1]), text)
    text = re.sub(r"[0-9]+\.[0-9]+", lambda match: match[0].replace(".", " point "), text)
    text = re.sub(r"([0-9]+)(st|nd|rd|th)", lambda match: _ordinal(int(match[1])), text)
    return re.sub(r"[0-9]+", lambda match: f" {_spoken(match[0])} " if with_spacing else _spoken(match[0]), text)


def basic_cleaners(text: str) -> str:
    """Lower case, single spaces."""
    return collapse_whitespace(lowercase(text))


def transliteration_cleaners(text: str) -> str:
    """ASCII, lower case, single spaces."""
    return basic_cleaners(convert_to_ascii(text))


def english_cleaners(text: str) -> str:
    """ASCII, lower case, numbers and abbreviations as words, single spaces."""
    return _english(lowercase(convert_to_ascii(text)))


def english_cleaners_keep_special(text: str) -> str:
    """As english_cleaners, but words like [noise] and <unk> keep their case."""
    return _english(lowercase_keep_special(convert_to_ascii(text)))


def _english(text: str) -> str:
    return collapse_whitespace(expand_abbreviations(normalize_numbers(text, with_spacing=True)))


def get_remove_chars(chars: str | Sequence[str]) -> Cleaner:
    """A cleaner that puts a space in place of each of these, and then single spaces."""

    def remove(text: str) -> str:
        for char in chars:
            text = text.replace(char, " ")
        return collapse_whitespace(text)

    return remove


def get_replace(old: str, new: str) -> Cleaner:
    """A cleaner that puts one text in place of another."""
    return lambda text: text.replace(old, new)


CLEANERS: dict[str, Cleaner] = {
    function.__name__: function
    for function in (
        basic_cleaners, collapse_whitespace, convert_to_ascii, english_cleaners, english_cleaners_keep_special,
        expand_abbreviations, lowercase, lowercase_keep_special, normalize_numbers, transliteration_cleaners,
    )
}  # fmt: skip
"""By name."""
FACTORIES: dict[str, Callable[..., Cleaner]] = {"get_remove_chars": get_remove_chars, "get_replace": get_replace}
"""By the name of what is called to make one."""


def text_cleaner(options: CleanerLike | None) -> Cleaner:
    """The function for a name, `"get_remove_chars(',/')"`, names with commas, or a list of these; a function stays.

    Raises:
        DataError: an unknown name, or a text that is none of these.
    """
    if callable(options):
        return options
    if isinstance(options, str) and options:
        return _parsed(options)
    steps = [text_cleaner(option) for option in options or ()]

    def clean(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return steps[0] if len(steps) == 1 else clean


def _parsed(text: str) -> Cleaner:
    known = {**CLEANERS, **FACTORIES}
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Tuple):
            return text_cleaner([ast.unparse(part) for part in node.elts])
        name = node.func if isinstance(node, ast.Call) else node
        if isinstance(name, ast.Name) and name.id not in known:
            there = f" (there are: {', '.join(known)})"
            raise DataError(f"no cleaner of texts {name.id!r}{nearest(name.id, known)}{there}")
        if isinstance(node, ast.Call) and isinstance(name, ast.Name) and name.id in FACTORIES and not node.keywords:
            return FACTORIES[name.id](*map(ast.literal_eval, node.args))
        if isinstance(node, ast.Name) and node.id in CLEANERS:
            return CLEANERS[node.id]
    except (SyntaxError, ValueError, TypeError) as error:
        raise DataError(f"cleaner of texts {text!r}: {error}") from error
    raise DataError(f"cleaner of texts {text!r}: expected a name, like english_cleaners, or get_remove_chars('...')")


def number_words(number: int) -> str:
    """1234 -> one thousand, two hundred thirty-four."""
    return _cardinal(number, "")


def _cardinal(number: int, andword: str) -> str:
    if number == 0:
        return "zero"
    if number >= 1000 ** len(_THOUSANDS):
        return " ".join(_ONES[int(digit)] for digit in str(number))
    parts: list[str] = []
    for index, scale in enumerate(_THOUSANDS):
        group = number // 1000**index % 1000
        if group:
            words = _below_thousand(group, andword)
            parts.insert(0, f"{words} {scale}".strip())
    last = number % 1000
    if len(parts) > 1 and 0 < last < 100:  # no comma before a small rest
        small = parts.pop()
        parts[-1] += f" {andword} {small}" if andword else f" {small}"
    return ", ".join(parts)


def _below_thousand(number: int, andword: str) -> str:
    hundreds, rest = divmod(number, 100)
    words = [f"{_ONES[hundreds]} hundred"] if hundreds else []
    if hundreds and rest and andword:
        words.append(andword)
    return " ".join([*words, *([_below_hundred(rest)] if rest else [])])


def _below_hundred(number: int) -> str:
    if number < 20:
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")


def _ordinal(number: int) -> str:
    words = _cardinal(number, "and")
    start, last = re.fullmatch(r"(.*[ -])?(\w+)", words).groups(default="")  # type: ignore[union-attr]
    if last not in _ORDINALS:
        last = last[:-1] + "ieth" if last.endswith("y") else last + "th"
        return start + last
    return start + _ORDINALS[last]


def _spoken(digits: str) -> str:
    """A number as it is read aloud: digit by digit with a leading 0, as a year between 1000 and 3000."""
    number = int(digits)
    if digits.startswith("0") or number == 747:
        return " ".join(_ONES[int(digit)] for digit in digits)
    if not 1000 < number < 3000 or number == 2000:
        return number_words(number)
    century, rest = divmod(number, 100)
    if rest == 0:
        return f"{number_words(century)} hundred"
    if century == 20 and rest < 10:
        return f"two thousand {_ONES[rest]}"
    return f"{_below_hundred(century)} {_below_hundred(rest) if rest >= 10 else 'oh ' + _ONES[rest]}"


def _dollars(amount: str) -> str:
    parts = amount.replace(",", "").split(".")
    if len(parts) > 2:
        return f"{amount} dollars"
    dollars, cents = (int(part) if part else 0 for part in [*parts, ""][:2])
    named = [(dollars, "dollar"), (cents, "cent")]
    return ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for count, name in named if count) or "zero dollars"
