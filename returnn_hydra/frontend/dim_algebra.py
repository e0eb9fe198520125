"""Arithmetic on dims as plain terms: two dims are equal if they were derived from the same dims in the same way.

A dim has a *term*: a base dim, or an operation over terms. Sums and products are kept flat and in order. Neighbours
that are the same but for a number are put together, so (T + 1) - 1 is T again, (T + 1) + 1 equals T + 2, and 2 * T + T
equals 3 * T; T + S and S + T differ.
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
    parts: list[Operand] = []
    for part in (*_parts("add", left), *_parts("add", right)):
        if parts:
            (last_count, last), (count, what) = _counted(parts[-1]), _counted(part)
            if last == what:
                parts.pop()
                part = mul(last_count + count, what)
        if part != 0 or not isinstance(part, int):
            parts.append(part)
    return _rebuild("add", tuple(parts))


def _counted(operand: Operand) -> tuple[int, Operand]:
    """An operand as count times something: 3 * a -> (3, a), a -> (1, a), 5 -> (5, 1)."""
    if isinstance(operand, int):
        return operand, 1
    first, *rest = _parts("mul", operand)
    return (first, _rebuild("mul", tuple(rest))) if isinstance(first, int) and rest else (1, operand)


def mul(left: Operand, right: Operand) -> Operand:
    """left * right; a sum on the left is multiplied part by part."""
    if left == 0 or right == 0:
        return 0
    if isinstance(left, Term) and left.kind == "add" and right != 1:
        total: Operand = 0
        for part in left.operands:
            total = add(total, mul(part, right))
        return total
    parts: list[Operand] = []
    for part in (*_parts("mul", left), *_parts("mul", right)):
        if parts and isinstance(parts[-1], int) and isinstance(part, int):
            part = parts.pop() * part
        if part != 1 or not isinstance(part, int):
            parts.append(part)
    return _rebuild("mul", tuple(parts))


def _parts(kind: str, operand: Operand) -> tuple[Operand, ...]:
    if isinstance(operand, Term) and operand.kind == kind:
        return operand.operands
    return (operand,)


def sub_right(left: Operand, right: Operand) -> Operand:
    """left - right: takes `right` off the right end of a sum."""
    for part in reversed(_parts("add", right)):
        left = add(left, mul(-1, part))
    return left


def sub_left(left: Operand, right: Operand) -> Operand:
    """left - right: takes `right` off the left end of a sum."""
    for part in _parts("add", right):
        left = add(mul(-1, part), left)
    return left


def div(left: Operand, right: Operand, kind: str, side: str) -> Operand:
    """left / right (`kind`: floordiv, ceildiv, truediv); a factor at that `side` of a product simply goes.

    (a / 2) / 3 is a / 6.
    """
    if right == 1:
        return left
    exact = _quotient(left, right, side)
    if exact is not None:
        return exact
    kind = f"{kind}_{side}"
    if isinstance(left, Term) and left.kind == kind and isinstance(right, int) and isinstance(left.operands[1], int):
        left, right = left.operands[0], left.operands[1] * right
    return Term(kind, (left, right))


def _quotient(left: Operand, right: Operand, side: str) -> Operand | None:
    """left / right if `right` is a factor of every part of a sum; else None."""
    total: Operand = 0
    parts = _parts("add", left)
    for part in parts:
        factors = _parts("mul", part)
        index = -1 if side == "right" else 0
        if isinstance(part, int) and isinstance(right, int) and len(parts) > 1 and part % right == 0:
            quotient: Operand = part // right
        elif factors[index] == right and len(factors) > 1:
            quotient = _rebuild("mul", factors[:-1] if side == "right" else factors[1:])
        elif part == right and len(parts) > 1:
            quotient = 1
        else:
            return None
        total = add(total, quotient)
    return total


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
