"""RETURNN's `learning_rate_file`: a Python expression with the learning rate and the scores of every epoch.

    {
    1: EpochData(learningRate=0.01, error={
    ':meta:global_train_step': 0,
    'dev_loss_ce': 0.265,
    'train_loss_ce': 0.355,
    }),
    }

RETURNN evaluates it; here it is parsed as literals, so that a file can't run anything. What RETURNN writes is read, and
what is written here RETURNN reads. More than RETURNN, the reader takes positional arguments of EpochData, integer rates
and all spellings of numpy scalars.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from returnn_hydra.compat.score_keys import to_returnn_key
from returnn_hydra.engine.files import FileSystem, write_text
from returnn_hydra.engine.records import EpochRecord

META = ":meta:"
OLD_SCORE = "old_format_score"
"""RETURNN's name for the score of files with one number per epoch."""
NUMBERS = {"nan": math.nan, "inf": math.inf, "NaN": math.nan, "Infinity": math.inf}
NUMPY_FLOATS = ("float16", "float32", "float64", "longdouble")
NUMPY_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


class LearningRateFileError(ValueError):
    """The text is no learning-rate file."""


@dataclass(frozen=True)
class EpochData:
    """One epoch of the file."""

    learning_rate: float
    error: dict[str, Any] = field(default_factory=dict)
    """Everything that is recorded, RETURNN's keys: scores, and `:meta:*`."""

    @property
    def scores(self) -> dict[str, float]:
        """The scores, e.g. `{"dev_loss_ce": 0.27}`."""
        return {key: value for key, value in self.error.items() if not key.startswith(META)}

    @property
    def meta(self) -> dict[str, Any]:
        """What else is known of the epoch, without the prefix, e.g. `{"global_train_step": 0}`."""
        return {key.removeprefix(META): value for key, value in self.error.items() if key.startswith(META)}


def read_learning_rate_file(path: str | Path) -> dict[int, EpochData]:
    """Epoch to what is recorded, sorted by epoch.

    Raises:
        LearningRateFileError: with the file, the line and what is wrong.
        OSError: the file can't be read.
    """
    return parse_learning_rates(Path(path).read_text(encoding="utf-8"), str(path))


def parse_learning_rates(text: str, name: str = "<learning rates>") -> dict[int, EpochData]:
    """Like `read_learning_rate_file`, for the file's text."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise LearningRateFileError(f"{name}, line {getattr(error, 'lineno', None) or 1}: {error}") from error
    if not isinstance(tree, ast.Dict):
        raise _wrong(name, tree, "expected {epoch: EpochData(...), ...}")
    entries: dict[int, EpochData] = {}
    try:
        for key, value in zip(tree.keys, tree.values, strict=True):
            epoch = _literal(key, name) if key else None
            if not isinstance(epoch, int) or isinstance(epoch, bool):
                raise _wrong(name, key or tree, "expected an epoch (an integer)")
            entries[epoch] = _epoch_data(value, name)
    except RecursionError as error:
        raise LearningRateFileError(f"{name}: too deeply nested") from error
    return dict(sorted(entries.items()))


def _epoch_data(node: ast.expr, name: str) -> EpochData:
    if not isinstance(node, ast.Call) or _dotted(node.func) not in ("EpochData", "LearningRateControl.EpochData"):
        raise _wrong(name, node, "expected EpochData(learningRate=..., error={...})")
    given = dict(zip(("learningRate", "error"), node.args, strict=False))
    for keyword in node.keywords:
        key = "learningRate" if keyword.arg == "learning_rate" else keyword.arg
        if key not in ("learningRate", "error") or key in given:
            raise _wrong(name, keyword.value, f"EpochData takes learningRate and error once each, not {keyword.arg!r}")
        given[key] = keyword.value
    if len(node.args) > 2 or "learningRate" not in given:
        raise _wrong(name, node, "EpochData takes learningRate and error")
    rate = _literal(given["learningRate"], name)
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise _wrong(name, given["learningRate"], f"the learning rate {rate!r} is no number")
    error = _literal(given["error"], name) if "error" in given else {}
    if isinstance(error, int | float) and not isinstance(error, bool):
        error = {OLD_SCORE: float(error)}
    if not isinstance(error, dict) or not all(isinstance(key, str) for key in error):
        raise _wrong(name, given["error"], "error is no dict of names to values")
    return EpochData(_as_float(rate, name, node), error)


def _literal(node: ast.expr, name: str) -> Any:
    """The value of an expression that only builds plain values.

    Raises:
        LearningRateFileError: anything else, like a call of an unknown function.
    """
    match node:
        case ast.Constant(value=value) if value is not Ellipsis:
            return value
        case ast.Name(id=word) if word in NUMBERS:
            return NUMBERS[word]
        case ast.Attribute(attr=word) if _dotted(node) in ("np.nan", "np.inf", "numpy.nan", "numpy.inf"):
            return NUMBERS[word]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            value = _literal(operand, name)
            if isinstance(value, int | float):
                return -value if isinstance(sign, ast.USub) else value
        case ast.List(elts=elements):
            return [_literal(element, name) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(_literal(element, name) for element in elements)
        case ast.Dict(keys=keys, values=values) if all(isinstance(key, ast.Constant) for key in keys):
            return {key.value: _literal(value, name) for key, value in zip(keys, values, strict=True)}  # type: ignore[union-attr]
        case ast.Call(func=function, args=[argument], keywords=[]):
            return _number_call(_dotted(function), argument, name)
    raise _wrong(name, node, f"{ast.unparse(node)[:60]!r} is no plain value")


def _number_call(function: str, argument: ast.expr, name: str) -> Any:
    """`float('nan')`, `np.float64(1.5)`, `numpy.int64(3)`, `set([...])` as plain values."""
    word = function.removeprefix("np.").removeprefix("numpy.")
    value = _literal(argument, name)
    if word == "set" and isinstance(value, list):
        return value
    if word in ("float", *NUMPY_FLOATS) and isinstance(value, int | float | str):
        return _as_float(value, name, argument)
    if word in ("int", *NUMPY_INTEGERS) and isinstance(value, int):
        return int(value)
    if word in ("bool", "bool_") and isinstance(value, bool):
        return value
    raise _wrong(name, argument, f"{function or 'this'}({value!r}) is no plain value")


def _as_float(value: float | str, name: str, node: ast.expr) -> float:
    try:
        return float(value)
    except (ValueError, OverflowError) as error:
        raise _wrong(name, node, f"{str(value)[:40]!r} is no number") from error


def _dotted(node: ast.expr) -> str:
    """`a.b.c` of names and attributes, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := _dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""


def _wrong(name: str, node: ast.expr, message: str) -> LearningRateFileError:
    return LearningRateFileError(f"{name}, line {node.lineno}, column {node.col_offset + 1}: {message}")


def format_learning_rates(entries: Mapping[int, EpochData]) -> str:
    """The file's text."""
    values = {epoch: entries[epoch] for epoch in sorted(entries)}
    return better_repr(values) + "\n"


def better_repr(value: Any) -> str:
    """Plain values as Python, one entry per line where it gets long; RETURNN's layout.

    A dict is sorted by key, and broken up when its entries have 40 characters or more together; a list always is.
    """
    if isinstance(value, EpochData):
        return f"EpochData(learningRate={better_repr(float(value.learning_rate))}, error={better_repr(value.error)})"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{float(value)}')"
    if isinstance(value, Mapping):
        parts = [f"{better_repr(key)}: {better_repr(value[key])}" for key in sorted(value)]
        if sum(map(len, parts)) >= 40:
            return "{\n" + "".join(f"{part},\n" for part in parts) + "}"
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, list):
        return "[\n" + "".join(f"{better_repr(part)},\n" for part in value) + "]"
    if isinstance(value, set):
        return f"set({better_repr(sorted(value))})"
    if isinstance(value, tuple):
        return "(" + ", ".join(better_repr(part) for part in value) + ("," if len(value) == 1 else "") + ")"
    return repr(value)


def from_records(records: Iterable[EpochRecord]) -> dict[int, EpochData]:
    """Our records with RETURNN's keys: `dev/ce` is `dev_loss_ce`."""
    entries = {}
    first_step = 0
    for record in records:
        error: dict[str, Any] = {to_returnn_key(name): float(value) for name, value in record.means().items()}
        error[f"{META}effective_learning_rate"] = float(record.learning_rate)
        error[f"{META}global_train_step"] = first_step
        error[f"{META}global_train_step_end"] = record.step
        if "train" in record.seconds:
            error[f"{META}epoch_train_time_secs"] = round(record.seconds["train"])
        entries[record.epoch] = EpochData(float(record.learning_rate), error)
        first_step = record.step
    return entries


def write_learning_rate_file(path: str | Path, records: Sequence[EpochRecord]) -> None:
    """Write the file of a run, at once: an old file stays whole until the new one is there."""
    write_text(FileSystem(), Path(path), format_learning_rates(from_records(records)))


def history(entries: Mapping[int, EpochData]) -> list[tuple[float, dict[str, float]]]:
    """What a LearningRateControl looks at, for epochs 1, 2, ... up to the first one that has no scores yet."""
    past: list[tuple[float, dict[str, float]]] = []
    for epoch, data in sorted(entries.items()):
        if epoch != len(past) + 1 or not data.scores:
            break
        past.append((data.learning_rate, data.scores))
    return past
