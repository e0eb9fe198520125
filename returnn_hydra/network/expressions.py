"""A small interpreter for the expressions in network dicts; it never calls Python's `eval`.

It walks the syntax tree and knows numbers, strings, arithmetic, comparisons, subscripts and calls. Names and
attributes come from explicit tables only, so that an expression reaches nothing that is not listed.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch

from returnn_hydra.network.errors import NetworkError, nearest


class Namespace:
    """A table of functions and constants that an expression may reach by attribute (`tf.nn.relu`)."""

    def __init__(self, name: str, members: Mapping[str, Any]) -> None:
        self._name = name
        self._members = dict(members)

    def __repr__(self) -> str:
        return f"<namespace {self._name}>"

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        members = self.__dict__["_members"]
        if attribute not in members:
            raise NetworkError(f"{self._name}.{attribute} is not supported{nearest(attribute, members)}")
        return members[attribute]


class Facade:
    """An object of which an expression may read only the attributes that the class lists."""

    expression_attributes: frozenset[str] = frozenset()


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.MatMult: operator.matmul,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Invert: operator.invert,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
TENSOR_ATTRIBUTES = frozenset({"shape", "dtype", "ndim", "get_shape", "set_shape", "as_list"})


@lru_cache(maxsize=1024)
def _parse(text: str) -> ast.expr:
    return ast.parse(text.strip(), mode="eval").body


def evaluate_expression(text: str, names: Mapping[str, Any], where: str) -> Any:
    """The value of an expression.

    Args:
        text: one Python expression.
        names: everything it may refer to.
        where: layer and option, for messages.

    Raises:
        NetworkError: it does not parse, or uses a name or a construct that is not allowed.
    """
    try:
        tree = _parse(text)
    except SyntaxError as error:
        raise NetworkError(f"{where}: {text!r} is no expression: {error.msg}") from None
    return _Interpreter(names, f"{where}: in {text!r}").value(tree)


class _Interpreter:
    def __init__(self, names: Mapping[str, Any], where: str) -> None:
        self.names = names
        self.where = where

    def value(self, node: ast.AST) -> Any:
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise NetworkError(f"{self.where}: {type(node).__name__} is not allowed in an expression")
        return method(node)

    def _constant(self, node: ast.Constant) -> Any:
        return node.value

    def _name(self, node: ast.Name) -> Any:
        if node.id not in self.names:
            raise NetworkError(f"{self.where}: unknown name {node.id!r}{nearest(node.id, self.names)}")
        return self.names[node.id]

    def _attribute(self, node: ast.Attribute) -> Any:
        owner = self.value(node.value)
        if isinstance(owner, Namespace):
            return getattr(owner, node.attr)
        if isinstance(owner, Facade) and node.attr in owner.expression_attributes:
            return getattr(owner, node.attr)
        if isinstance(owner, torch.Tensor) and node.attr in TENSOR_ATTRIBUTES:
            return getattr(owner, node.attr)
        known = getattr(owner, "expression_attributes", TENSOR_ATTRIBUTES if isinstance(owner, torch.Tensor) else ())
        raise NetworkError(
            f"{self.where}: attribute {node.attr!r} of a {type(owner).__name__} is not allowed"
            f"{nearest(node.attr, known)}"
        )

    def _call(self, node: ast.Call) -> Any:
        function = self.value(node.func)
        if not callable(function):
            raise NetworkError(f"{self.where}: {ast.unparse(node.func)} is no function")
        arguments: list[Any] = []
        for argument in node.args:
            arguments.append(self.value(argument))
        keywords = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                keywords.update(self.value(keyword.value))
            else:
                keywords[keyword.arg] = self.value(keyword.value)
        return function(*arguments, **keywords)

    def _binop(self, node: ast.BinOp) -> Any:
        if type(node.op) not in _BINARY:
            raise NetworkError(f"{self.where}: operator {type(node.op).__name__} is not allowed")
        return _BINARY[type(node.op)](self.value(node.left), self.value(node.right))

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        return _UNARY[type(node.op)](self.value(node.operand))

    def _boolop(self, node: ast.BoolOp) -> Any:
        result: Any = None
        for part in node.values:
            result = self.value(part)
            if bool(result) != isinstance(node.op, ast.And):
                return result
        return result

    def _compare(self, node: ast.Compare) -> Any:
        left = self.value(node.left)
        result: Any = None
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            if type(op) not in _COMPARE:
                raise NetworkError(f"{self.where}: comparison {type(op).__name__} is not allowed")
            right = self.value(right_node)
            outcome = _COMPARE[type(op)](left, right)
            result = outcome if result is None else result & outcome
            left = right
        return result

    def _ifexp(self, node: ast.IfExp) -> Any:
        return self.value(node.body if self.value(node.test) else node.orelse)

    def _tuple(self, node: ast.Tuple) -> Any:
        return tuple(self.value(part) for part in node.elts)

    def _list(self, node: ast.List) -> Any:
        return [self.value(part) for part in node.elts]

    def _dict(self, node: ast.Dict) -> Any:
        return {
            self.value(key): self.value(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if key is not None
        }

    def _subscript(self, node: ast.Subscript) -> Any:
        return self.value(node.value)[self.value(node.slice)]

    def _slice(self, node: ast.Slice) -> Any:
        return slice(*[None if part is None else self.value(part) for part in (node.lower, node.upper, node.step)])
