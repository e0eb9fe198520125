"""Numbers by name, for configs that count frames per stream."""

from __future__ import annotations

import operator
from collections.abc import Callable, ItemsView, Iterable, KeysView, Mapping, Sequence
from typing import Any

Function = Callable[[Any, Any], Any]


class NumbersDict:
    """Numbers by name, with arithmetic per entry.

    Args:
        auto_convert: the entries, or one number for every name, or another NumbersDict.
        numbers_dict: the entries.
        broadcast_value: the number of every name that has no entry.
    """

    def __init__(
        self, auto_convert: Any = None, numbers_dict: Mapping[str, Any] | None = None, broadcast_value: Any = None
    ) -> None:
        self.dict: dict[str, Any] = dict(numbers_dict or {})
        self.value = broadcast_value
        if isinstance(auto_convert, NumbersDict):
            self.dict, self.value = dict(auto_convert.dict), auto_convert.value
        elif isinstance(auto_convert, Mapping):
            self.dict = dict(auto_convert)
        elif auto_convert is not None:
            self.value = auto_convert

    def copy(self) -> NumbersDict:
        return NumbersDict(self)

    @classmethod
    def constant_like(cls, const_number: Any, numbers_dict: NumbersDict) -> NumbersDict:
        """This number for every entry that the other one has."""
        value = None if numbers_dict.value is None else const_number
        return NumbersDict(numbers_dict=dict.fromkeys(numbers_dict.dict, const_number), broadcast_value=value)

    def copy_like(self, numbers_dict: NumbersDict) -> NumbersDict:
        """The entries that the other one has, too."""
        value = None if numbers_dict.value is None else self.value
        found = {key: self[key] for key in numbers_dict.dict if self.has_value_for(key)}
        return NumbersDict(numbers_dict=found, broadcast_value=value)

    @property
    def keys_set(self) -> set[str]:
        return set(self.dict)

    def keys_union(self, *others: NumbersDict) -> list[str]:
        """All names, each once, in the order they come."""
        return list(dict.fromkeys(key for numbers in (self, *others) for key in numbers.dict))

    def __getitem__(self, key: str) -> Any:
        return self.dict[key] if self.value is None else self.dict.get(key, self.value)

    def __setitem__(self, key: str, value: Any) -> None:
        self.dict[key] = value

    def __delitem__(self, key: str) -> None:
        del self.dict[key]

    def __contains__(self, key: object) -> bool:
        return key in self.dict

    def __iter__(self) -> Any:
        raise TypeError("a NumbersDict is not iterable: say keys(), items() or values()")

    def get(self, key: str, default: Any = None) -> Any:
        return self.dict.get(key, default if self.value is None else self.value)

    def pop(self, key: str, *default: Any) -> Any:
        return self.dict.pop(key, *default)

    def keys(self) -> KeysView[str]:
        return self.dict.keys()

    def values(self) -> list[Any]:
        """Those of the entries, then the one of all other names."""
        return [*self.dict.values(), *([] if self.value is None else [self.value])]

    def items(self) -> ItemsView[str, Any]:
        return self.dict.items()

    def has_value_for(self, key: str) -> bool:
        return self.value is not None or key in self.dict

    def has_values(self) -> bool:
        return bool(self.values())

    def unary_op(self, op: Callable[[Any], Any]) -> NumbersDict:
        value = None if self.value is None else op(self.value)
        return NumbersDict(numbers_dict={key: op(number) for key, number in self.items()}, broadcast_value=value)

    @classmethod
    def bin_op(cls, self: Any, other: Any, op: Function, zero: Any, result: NumbersDict | None = None) -> NumbersDict:
        """The function of both numbers of every name; a number that one side lacks is `zero`."""
        if not isinstance(self, NumbersDict):
            self = cls.constant_like(self, other) if isinstance(other, NumbersDict) else NumbersDict(self)
        if not isinstance(other, NumbersDict):
            other = cls.constant_like(other, self)

        def combine(a: Any, b: Any) -> Any:
            if a is None and b is None:
                return None
            return op(zero if a is None else a, zero if b is None else b)

        result = NumbersDict() if result is None else result
        result.dict.update({key: combine(self.get(key), other.get(key)) for key in self.keys_union(other)})
        result.value = combine(self.value, other.value)
        return result

    def __add__(self, other: Any) -> NumbersDict:
        return self.bin_op(self, other, operator.add, 0)

    __radd__ = __add__

    def __iadd__(self, other: Any) -> NumbersDict:
        return self.bin_op(self, other, operator.add, 0, result=self)

    def __sub__(self, other: Any) -> NumbersDict:
        return self.bin_op(self, other, operator.sub, 0)

    def __rsub__(self, other: Any) -> NumbersDict:
        return self.bin_op(other, self, operator.sub, 0)

    def __isub__(self, other: Any) -> NumbersDict:
        return self.bin_op(self, other, operator.sub, 0, result=self)

    def __mul__(self, other: Any) -> NumbersDict:
        return self.bin_op(self, other, operator.mul, 1)

    __rmul__ = __mul__

    def __imul__(self, other: Any) -> NumbersDict:
        return self.bin_op(self, other, operator.mul, 1, result=self)

    def __truediv__(self, other: Any) -> NumbersDict:
        return self.bin_op(self, other, operator.truediv, 1)

    def __itruediv__(self, other: Any) -> NumbersDict:
        return self.bin_op(self, other, operator.truediv, 1, result=self)

    def __floordiv__(self, other: Any) -> NumbersDict:
        return self.bin_op(self, other, operator.floordiv, 1)

    def __ifloordiv__(self, other: Any) -> NumbersDict:
        return self.bin_op(self, other, operator.floordiv, 1, result=self)

    def __neg__(self) -> NumbersDict:
        return self.unary_op(operator.neg)

    def __bool__(self) -> bool:
        return any(self.values())

    def elem_eq(self, other: Any, result_with_default: bool = True) -> NumbersDict:
        """Whether the numbers are equal, per entry; no answer where one side has none."""
        result = self.bin_op(self, other, lambda a, b: None if a is None or b is None else a == b, None)
        if not result_with_default:
            result.value = None
        return result

    def __eq__(self, other: object) -> bool:
        return all(self.elem_eq(other).values())

    __hash__ = None  # type: ignore[assignment]

    def any_compare(self, other: NumbersDict, cmp: Function) -> bool:
        """Whether it holds for one of our numbers and the other side's under the same name."""
        pairs = [(number, other.get(key)) for key, number in self.items()]
        return any(cmp(a, b) for a, b in [*pairs, (self.value, other.value)] if a is not None and b is not None)

    @classmethod
    def _fold(cls, items: Sequence[Any], choose: Callable[[Iterable[Any]], Any]) -> NumbersDict:
        if len(items) == 1:
            return NumbersDict(items[0])
        result = items[-1]
        for item in reversed(items[:-1]):
            result = cls.bin_op(item, result, lambda a, b: choose(x for x in (a, b) if x is not None), None)
        return result

    @classmethod
    def max(cls, items: Sequence[Any]) -> NumbersDict:
        """Per entry the largest."""
        return cls._fold(items, max)

    @classmethod
    def min(cls, items: Sequence[Any]) -> NumbersDict:
        """Per entry the smallest."""
        return cls._fold(items, min)

    def max_value(self) -> Any:
        return max(self.values())

    def min_value(self) -> Any:
        return min(self.values())

    def __repr__(self) -> str:
        parts = [repr(self.dict)] if self.dict else []
        if self.value is not None:
            parts = [f"numbers_dict={self.dict!r}", f"broadcast_value={self.value!r}"] if parts else [repr(self.value)]
        return f"NumbersDict({', '.join(parts)})"
