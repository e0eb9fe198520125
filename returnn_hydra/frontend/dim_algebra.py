"""Arithmetic on dims as plain terms: two dims are equal if they were derived from the same dims in the same way.

A dim has a *term*: a base dim, or an operation over terms. Sums and products are kept flat and in order, and
neighbouring
constants are folded, so (T + 1) - 1 is T again and (T + 1) + 1 equals T + 2; T + S and S + T differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Operand = Any
"""A base dim, a Term, or an int."""


@dataclass(frozen=True)
class Term:
    """An operation over base dims, ints and other terms."""

    kind: str
    """add, mul, floordiv_right, floordiv_left, ceildiv_right, ceildiv_left, ..."""
    operands: tuple[Operand, ...]


def add(left: Operand, right: Operand) -> Operand:
    """left + right."""
    return _flat("add", left, right, 0, lambda a, b: a + b)


def mul(left: Operand, right: Operand) -> Operand:
    """left * right."""
    return _flat("mul", left, right, 1, lambda a, b: a * b)


def _flat(kind: str, left: Operand, right: Operand, neutral: int, fold: Callable[[int, int], int]) -> Operand:
    operands = [*_parts(kind, left)]
    for part in _parts(kind, right):
        if operands and isinstance(operands[-1], int) and isinstance(part, int):
            part = fold(operands.pop(), part)
        if part != neutral or not isinstance(part, int):
            operands.append(part)
    operands = [part for part in operands if not (isinstance(part, int) and part == neutral)]
    if not operands:
        return neutral
    return operands[0] if len(operands) == 1 else Term(kind, tuple(operands))


def _parts(kind: str, operand: Operand) -> tuple[Operand, ...]:
    if isinstance(operand, Term) and operand.kind == kind:
        return operand.operands
    return (operand,)


def sub_right(left: Operand, right: Operand) -> Operand:
    """left - right: takes `right` off the right end of a sum."""
    parts = _parts("add", left)
    if isinstance(right, int):
        return add(left, -right)
    if parts[-1] == right:
        return _rebuild("add", parts[:-1])
    return add(left, mul(-1, right))


def sub_left(left: Operand, right: Operand) -> Operand:
    """left - right: takes `right` off the left end of a sum."""
    parts = _parts("add", left)
    if isinstance(right, int):
        return add(-right, left)
    if parts[0] == right:
        return _rebuild("add", parts[1:])
    return add(mul(-1, right), left)


def div(left: Operand, right: Operand, kind: str, side: str) -> Operand:
    """left / right (`kind`: floordiv, ceildiv, truediv); a factor at that `side` of a product simply goes."""
    if right == 1:
        return left
    parts = _parts("mul", left)
    index = -1 if side == "right" else 0
    if parts[index] == right and len(parts) > 1:
        return _rebuild("mul", parts[:-1] if side == "right" else parts[1:])
    return Term(f"{kind}_{side}", (left, right))


def _rebuild(kind: str, parts: tuple[Operand, ...]) -> Operand:
    if not parts:
        return 0 if kind == "add" else 1
    return parts[0] if len(parts) == 1 else Term(kind, parts)


def bases(operand: Operand) -> list[Any]:
    """The base dims of a term, in order."""
    if isinstance(operand, Term):
        return [base for part in operand.operands for base in bases(part)]
    return [] if isinstance(operand, int) else [operand]


def evaluate(operand: Operand, value_of: Callable[[Any], Any], maximum: Callable[[Any, int], Any]) -> Any:
    """The value of a term; `value_of` gives that of a base dim (an int or a tensor of lengths).

    Args:
        maximum: clips lengths at 0 after a subtraction.
    """
    if isinstance(operand, int):
        return operand
    if not isinstance(operand, Term):
        return value_of(operand)
    values = [evaluate(part, value_of, maximum) for part in operand.operands]
    result = values[0]
    for value in values[1:]:
        if operand.kind == "add":
            result = result + value
        elif operand.kind == "mul":
            result = result * value
        elif operand.kind.startswith("ceildiv"):
            result = -(-result // value)
        elif operand.kind.startswith("truediv"):
            result = _exact_division(result, value)
        else:
            result = result // value
    negative = operand.kind == "add" and any(isinstance(part, int) and part < 0 for part in operand.operands)
    return maximum(result, 0) if negative else result


def _exact_division(value: Any, divisor: Any) -> Any:
    if isinstance(value, int) and isinstance(divisor, int) and value % divisor:
        raise ValueError(f"{value} does not divide by {divisor}")
    return value // divisor


def describe(operand: Operand, name_of: Callable[[Any], str]) -> str:
    """A readable form, as RETURNN prints it: 'time+2', '⌈time/2⌉', 'F*2'."""
    if isinstance(operand, int):
        return str(operand)
    if not isinstance(operand, Term):
        return name_of(operand)
    texts = [describe(part, name_of) for part in operand.operands]
    is_sum = [isinstance(part, Term) and part.kind == "add" for part in operand.operands]
    wrapped = [f"({text})" if inner else text for text, inner in zip(texts, is_sum, strict=True)]
    if operand.kind == "add":
        return "+".join(texts)
    if operand.kind == "mul":
        return "*".join(wrapped)
    if operand.kind.startswith("ceildiv"):
        return f"⌈{wrapped[0]}/{wrapped[1]}⌉"
    return f"{wrapped[0]}//{wrapped[1]}"
