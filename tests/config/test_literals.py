"""Values written as text, against Python's and JSON's own readers."""

import ast
import json
import math
from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from returnn_hydra.config.errors import ConfigError
from returnn_hydra.config.literals import describe, fits, parse_literal, parse_typed
from returnn_hydra.config.text_error import ConfigTextError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_python_and_json_values(value):
    if not isinstance(value, str):
        assert parse_literal(repr(value)) == value
        assert parse_literal(json.dumps(value)) == value
    assert parse_literal(repr(value)) == value


@given(st.text(max_size=30) | st.text("[](){}'\",:\\ -1e.ab\n", max_size=30))
def test_any_text_gives_a_value_or_a_config_error(text):
    for annotation in (None, int, float, bool, str, list[float], int | dict | None, str | list):
        try:
            value = parse_literal(text) if annotation is None else parse_typed(text, annotation, "key")
        except ConfigError:
            continue
        assert annotation is None or fits(value, annotation)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("+3", 3),
        ("1_000", 1000),
        ("1e-3", 1e-3),
        (".5", 0.5),
        ("5.", 5.0),
        ("-inf", -math.inf),
        ("None", None),
        ("null", None),
        ("True", True),
        ("no", "no"),
        ("a,b", "a,b"),
        ("hello world", "hello world"),
        ("0x10", "0x10"),
        ("1.2.3", "1.2.3"),
        ("", ""),
        ("[a, b c, 3]", ["a", "b c", 3]),
        ("(1,)", (1,)),
        ("(1)", 1),
        ("()", ()),
        ("{a: 1, 'b': [x], 2: {}}", {"a": 1, "b": ["x"], 2: {}}),
        ('{"class": "adam", "epsilon": 1e-8,}', {"class": "adam", "epsilon": 1e-8}),
        (r"'it\'s \u00e4'", "it's ä"),
        ("[1,\n 2]", [1, 2]),
    ],
)
def test_values(text, value):
    assert repr(parse_literal(text)) == repr(value)
    if text and text[0] in "[({" and "a" not in text:
        assert ast.literal_eval(text) == value


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("[1, 2", 1, "no closing ']'"),
        ("[1 2 [3]]", 6, "expected ',' or ']'"),
        ("{a}", 3, "expected ':' after the key 'a'"),
        ("{a: }", 5, "a value is missing before '}'"),
        ("'abc", 1, "no closing '"),
        ("[1] 2", 5, "unexpected '2' after the end"),
        ("{[1]: 2}", 2, "a key must be a text or a number"),
        (r"'\x1'", 1, "wrong escape"),
        ("[" * 99, 52, "too many brackets"),
        ("[,]", 2, "a value is missing before ','"),
    ],
)
def test_errors_have_a_place(text, column, message):
    with pytest.raises(ConfigTextError) as caught:
        parse_literal(text, "++key")
    assert message in str(caught.value)
    assert caught.value.column == column
    assert str(caught.value).startswith("++key, line 1")


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("5", str, "5"),
        ("5", int, 5),
        ("5", float, 5.0),
        ("5.0", int, 5),
        ("1e4", int, 10000),
        ("5", int | str, 5),
        ("x", int | str, "x"),
        ("yes", bool, True),
        ("0", bool, False),
        ("None", int | None, None),
        ("none", str | None, None),
        ("1,2", list[int], [1, 2]),
        ("3", list[int], [3]),
        ("[0.1, 2]", list[float], [0.1, 2]),
        ("a,b", list[str], ["a", "b"]),
        ("{'a': 1}", dict | str, {"a": 1}),
        ("a", Literal["a", "b"], "a"),
    ],
)
def test_typed(text, annotation, value):
    found = parse_typed(text, annotation, "key")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "annotation", "words"),
    [
        ("x", int, "int"),
        ("0.5", int, "int"),
        ("x", int | float | None, "int or float or None"),
        ("maybe", bool, "bool"),
        ("c", Literal["a", "b"], "one of a, b"),
        ("f", Callable, "function"),
        ("1,x", list[int], "list of int"),
        ("[1]", dict[str, int], "dict"),
    ],
)
def test_wrong_values_name_the_type(text, annotation, words):
    with pytest.raises(ConfigTextError, match=f"is no {words}$"):
        parse_typed(text, annotation, "key")
    assert describe(annotation) == words
