"""Reading small files of text, literals, tags: gz or plain, and never by running what is in them."""

from __future__ import annotations

import ast
import difflib
import gzip
import io
import json
import os
import pickle
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

from returnn_hydra.data.dataset import DataError

PathLike = str | os.PathLike[str]


def open_binary(path: PathLike) -> IO[bytes]:
    """The file's bytes, unpacked if its name ends with .gz.

    Raises:
        DataError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file{nearest_file(path)}")
    return cast(IO[bytes], gzip.open(path, "rb")) if path.name.endswith(".gz") else path.open("rb")


def read_bytes(path: PathLike) -> bytes:
    """All of the file, unpacked if .gz."""
    with open_binary(path) as file:
        try:
            return file.read()
        except (OSError, EOFError) as error:
            raise DataError(f"{path}: can't be unpacked: {error}") from error


def read_text(path: PathLike) -> str:
    """All of the file as UTF-8."""
    return decode_utf8(read_bytes(path), where=str(path))


def read_lines(path: PathLike) -> list[str]:
    """The lines without their ends; a last line without an end counts. Only \\n and \\r\\n end a line."""
    lines = read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def decode_utf8(data: bytes, where: str) -> str:
    """Text of these bytes; `where` begins the error message."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{where}: line {line} is not UTF-8: {error}") from error


def read_literal(path: PathLike) -> Any:
    """The Python literal or JSON value in this file."""
    return parse_literal(read_text(path), where=str(path))


def parse_literal(text: str, where: str) -> Any:
    """The value of a Python literal or of JSON: lists, dicts, tuples, sets, strings, numbers.

    Also read: `nan`, `inf`, JSON's true/false/null, and numpy's way to print a number, e.g. `np.float32(0.5)`.

    Raises:
        DataError: it is anything else.
    """
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return json.loads(_TOKENS.sub(_as_json, text), strict=False)
    except (ValueError, SyntaxError):
        pass
    try:
        return _literal(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
        raise DataError(f"{where}: neither a Python literal nor JSON: {error}") from error


_TOKENS = re.compile(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|,(?=\s*[\]}])""")
"""Strings, and commas in front of a closing bracket: what keeps most Python literals from being JSON."""


def _as_json(token: re.Match[str]) -> str:
    """A Python string as a JSON string. (JSON is read ten times as fast, and rejects what else differs.)"""
    text = token[0]
    if text == ",":
        return ""
    if "\\" in text:
        return json.dumps(ast.literal_eval(text))
    return text if text[0] == '"' else json.dumps(text[1:-1]) if '"' in text else f'"{text[1:-1]}"'


_NAMES = {"nan": float("nan"), "inf": float("inf"), "NaN": float("nan"), "Infinity": float("inf")}
_NAMES |= {"true": True, "false": False, "null": None}  # type: ignore[dict-item]
_NUMPY_NUMBERS = ("float", "int", "uint", "bool", "str")


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.List():
            return [_literal(item) for item in node.elts]
        case ast.Tuple():
            return tuple(_literal(item) for item in node.elts)
        case ast.Set():
            return {_literal(item) for item in node.elts}
        case ast.Dict():
            if any(key is None for key in node.keys):
                raise ValueError(f"line {node.lineno}: ** in a dict")
            return {_literal(k): _literal(v) for k, v in zip(node.keys, node.values, strict=True)}  # type: ignore[arg-type]
        case ast.UnaryOp(op=ast.USub()):
            return -_literal(node.operand)
        case ast.UnaryOp(op=ast.UAdd()):
            return +_literal(node.operand)
        case ast.Call(func=ast.Attribute(value=ast.Name(id="np" | "numpy"), attr=name), args=[value], keywords=[]):
            if name.rstrip("_0123456789") in _NUMPY_NUMBERS:
                return _literal(value)
    raise ValueError(f"line {node.lineno}: {ast.unparse(node)[:80]!r} is not a literal")


_SAFE_GLOBALS = {"builtins": {"set": set, "frozenset": frozenset, "bytearray": bytearray, "complex": complex}}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _SAFE_GLOBALS[module][name]
        except KeyError:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which could run code") from None


def read_pickle(path: PathLike) -> Any:
    """The builtin containers, strings and numbers in a pickle file.

    Raises:
        DataError: it holds anything else (a pickle can run any code), or is broken.
    """
    try:
        return _RestrictedUnpickler(io.BytesIO(read_bytes(path))).load()
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{path}: only lists, dicts, strings and numbers are read from a pickle file: {error}. "
            "Save it as JSON or as a text file instead."
        ) from error


def read_tag_list(path: PathLike) -> list[str]:
    """Sequence tags: one per line (.txt, .gz, any name), or a pickled list (.pkl).

    Raises:
        DataError: it is not a list of strings.
    """
    if not Path(path).name.removesuffix(".gz").endswith(".pkl"):
        return [line for line in read_lines(path) if line]
    tags = read_pickle(path)
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise DataError(f"{path}: expected a list of sequence tags, got {type(tags).__name__}")
    return tags


def nearest(name: str, names: Iterable[str]) -> str:
    """', did you mean ...' with the nearest of the names, or nothing."""
    matches = difflib.get_close_matches(name, _some(names), n=1)
    return f", did you mean {matches[0]!r}?" if matches else ""


def _some(names: Iterable[str], limit: int = 20_000) -> Iterator[str]:
    """So many names are enough for a hint."""
    for _, name in zip(range(limit), names, strict=False):
        yield name


def nearest_file(path: Path) -> str:
    """For the end of an error message: the file there with the nearest name, or that there is no folder."""
    parent = path.parent
    if not parent.is_dir():
        return f" (and no folder {parent})"
    return nearest(path.name, (entry.name for entry in parent.iterdir()))
