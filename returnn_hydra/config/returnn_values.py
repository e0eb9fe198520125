"""The values of a RETURNN configuration, and RETURNN's ways to ask for them. See `returnn_config` for what differs."""

from __future__ import annotations

import builtins
import contextlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from returnn_hydra.config.errors import ConfigError
from returnn_hydra.config.line_config import split_value
from returnn_hydra.config.literals import BRACKETS, fits, parse_literal, parse_typed, to_bool

MODULE = "__returnn_config__"
"""`__name__` inside a Python config, and the name in sys.modules under which its functions can be pickled."""
NOT_OPTIONS = ("config",)


class ReturnnConfig:
    """The values of a configuration, and RETURNN's ways to ask for them.

    Args:
        declared: key to type, e.g. `{"num_epochs": int}`; what is not in there has the type of its literal.
    """

    def __init__(self, declared: Mapping[str, Any] | None = None) -> None:
        self.declared = dict(declared or {})
        self.module = types.ModuleType(MODULE)
        self.values: dict[str, Any] = self.module.__dict__
        """Values with a type; this is the namespace that Python files run in."""
        self.strings: dict[str, list[str]] = {}
        """Values of line-based files and of the command line for keys that no typed value is known of."""
        self.files: list[str] = []
        self.python_names: set[str] = set()
        """Names that a Python file has set; helpers among them are legal."""
        self.overrides: list[tuple[str, str]] = []

    # The whole.

    def keys(self) -> builtins.list[str]:
        """All options: every module-level name of a Python file, except modules and names with two underscores."""
        typed = [
            key
            for key, value in self.values.items()
            if not key.startswith("__") and key not in NOT_OPTIONS and not isinstance(value, types.ModuleType)
        ]
        return [*typed, *(key for key in self.strings if key not in self.values)]

    def to_dict(self) -> builtins.dict[str, Any]:
        """Every option with its typed value."""
        return {key: self.typed_value(key) for key in self.keys()}

    def update(self, values: Mapping[str, Any]) -> None:
        """Set typed values."""
        self.values.update(values)

    def set(self, key: str, value: Any) -> None:
        self.strings.pop(key, None)
        self.values[key] = value

    def add_line(self, key: str, value: str) -> None:
        """Set a value from a text, as the command line does.

        Raises:
            ConfigError: the text is no value of the key's declared type.
        """
        if key not in self.values:
            self.strings[key] = split_value(value)
            if key in self.declared:
                self._typed_from_strings(key)
            return
        self.values[key] = self._typed(key, value)
        self.strings.pop(key, None)

    @property
    def typed_dict(self) -> builtins.dict[str, Any]:
        return self.values

    @property
    def dict(self) -> builtins.dict[str, builtins.list[str]]:
        return self.strings

    # RETURNN's getters.

    def has(self, key: str) -> builtins.bool:
        return key in self.values or key in self.strings

    __contains__ = has

    def is_typed(self, key: str) -> builtins.bool:
        return key in self.values

    def typed_value(self, key: str, default: Any = None, index: builtins.int | None = None) -> Any:
        """The value as it is; of texts, what they say."""
        if key in self.values:
            value = self.values[key]
        elif key in self.strings:
            value = self._typed_from_strings(key)
        else:
            value = default
        return value if index is None else value[index]

    def opt_typed_value(self, key: str, default: Any = None) -> Any:
        """The typed value, or the text."""
        return self.values[key] if key in self.values else self.value(key, default)

    def get_of_type(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """The value if it is of this type, else the default."""
        value = self.typed_value(key, default)
        return value if isinstance(value, kind) else default

    def value(self, key: str, default: Any, index: builtins.int | None = None, list_join_str: str = ",") -> Any:
        """As a text; a list is joined. None counts as not there."""
        if self.values.get(key) is not None:
            value = self.values[key]
            if isinstance(value, list | tuple):
                return list_join_str.join(map(str, value)) if index is None else str(self._element(key, value, index))
            return str(value)
        if key in self.values or key not in self.strings:
            return default
        texts = self.strings[key]
        return list_join_str.join(texts) if index is None else self._element(key, texts, index)

    def int(self, key: str, default: Any, index: builtins.int = 0) -> Any:
        return self._get(key, default, index, self._to_int)

    def float(self, key: str, default: Any, index: builtins.int = 0) -> Any:
        return self._get(key, default, index, self._to_float)

    def bool(self, key: str, default: Any, index: builtins.int = 0) -> Any:
        return self._get(key, default, index, self._to_bool)

    def bool_or_other(self, key: str, default: Any = None, index: builtins.int = 0) -> Any:
        """A truth value if a text is one; anything else as it is."""

        def convert(key: str, value: Any) -> Any:
            with contextlib.suppress(ConfigError):
                return self._to_bool(key, value) if isinstance(value, str) and key not in self.values else value
            return value

        return self._get(key, default, index, convert)

    def is_true(self, key: str, default: builtins.bool = False) -> builtins.bool:
        """Whether the value counts as true; not there is `default`."""
        if not self.has(key):
            return default
        value = self.values[key] if key in self.values else self._element(key, self.strings[key], 0)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                return to_bool(value)
            if key not in self.values:
                self._to_bool(key, value)  # raises
        return bool(value)

    def list(self, key: str, default: Any = None) -> Any:
        """As a list; a single value is a list of one, None and what isn't there an empty one."""
        if key in self.values:
            value = self.values[key]
            if value is None:
                return []
            return list(value) if isinstance(value, list | tuple) else [value]
        if key in self.strings:
            return list(self.strings[key])
        return [] if default is None else default

    def int_list(self, key: str, default: Any = None) -> Any:
        return [self._to_int(key, value) for value in self.list(key, default)]

    def float_list(self, key: str, default: Any = None) -> Any:
        return [self._to_float(key, value) for value in self.list(key, default)]

    def int_pair(self, key: str, default: tuple[Any, Any] | None = None) -> tuple[Any, Any]:
        """`(a, b)`, also written "a:b"; a single number is both."""
        if not self.has(key):
            return default if default is not None else (0, 0)
        value = self.values[key] if key in self.values else ",".join(self.strings[key])
        parts = value.split(":") if isinstance(value, str) else value
        if isinstance(parts, int) or (isinstance(parts, list) and len(parts) == 1):
            number = self._to_int(key, parts if isinstance(parts, int) else parts[0])
            return number, number
        if not isinstance(parts, list | tuple) or len(parts) != 2:
            raise _wrong(key, value, "a pair of integers, (a, b) or 'a:b'")
        return self._to_int(key, parts[0]), self._to_int(key, parts[1])

    # From texts to values.

    def _get(self, key: str, default: Any, index: builtins.int, convert: Callable[[str, Any], Any]) -> Any:
        """The converted value, of a list the one at `index`; None stays None."""
        if not self.has(key):
            return default
        value = self.values[key] if key in self.values else self.strings[key]
        if isinstance(value, list | tuple):
            value = self._element(key, value, index)
        return None if value is None else convert(key, value)

    def _element(self, key: str, values: Sequence[Any], index: builtins.int) -> Any:
        try:
            return values[index]
        except IndexError as error:
            raise ConfigError(f"{key}: no entry {index}, it has {len(values)}") from error

    def _to_int(self, key: str, value: Any) -> Any:
        number = parse_literal(value, key) if isinstance(value, str) else value
        if not isinstance(number, int):
            raise _wrong(key, value, "an integer")
        return number

    def _to_float(self, key: str, value: Any) -> Any:
        number = parse_literal(value, key) if isinstance(value, str) else value
        if not isinstance(number, int | float):
            raise _wrong(key, value, "a number")
        return float(number) if isinstance(value, str) else number

    def _to_bool(self, key: str, value: Any) -> Any:
        if isinstance(value, int):
            return bool(value)
        try:
            return to_bool(value)
        except (ValueError, AttributeError) as error:
            raise _wrong(key, value, "true or false") from error

    def _typed_from_strings(self, key: str) -> Any:
        texts = self.strings[key]
        whole = ",".join(texts)
        if key in self.declared:
            return parse_typed(whole, self.declared[key], key)
        if len(texts) == 1 or whole.lstrip()[:1] in BRACKETS:
            return parse_literal(whole, key)
        return [parse_literal(text, key) for text in texts]

    def _typed(self, key: str, text: str) -> Any:
        """`text` for a key that has a typed value already."""
        if key in self.declared:
            return parse_typed(text, self.declared[key], key)
        current = self.values[key]
        if isinstance(current, str):
            return text
        if isinstance(current, bool | float):
            return parse_typed(text, type(current) | None, key)
        if isinstance(current, int):
            return parse_typed(text, int | float | None, key)
        value = parse_literal(text, key)
        if isinstance(current, list | tuple) and not isinstance(value, list | tuple):
            value = [parse_literal(part, key) for part in split_value(text)]
        kind = list if isinstance(current, list | tuple) else dict if isinstance(current, Mapping) else object
        if not fits(value, kind):
            raise _wrong(key, text, f"a {kind.__name__}, as in the file")
        return value


def _wrong(key: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(f"{key}={value!r}: expected {expected}")
