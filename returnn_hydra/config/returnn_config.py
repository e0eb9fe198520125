"""RETURNN's configuration files and command line as one dict of values.

Three syntaxes, told apart by the text: a file that starts with `#!` or is named `*.py` is Python, one that starts with
`{` is JSON with comments, any other has lines of `key value`. Several files are read in their order, later ones
override.

What differs from RETURNN, each because the original loses or breaks something silently:

* A value of the command line or of a line-based file gets the declared type of its key, else the type that the key
  has in the Python or JSON file, else that of a literal (`3`, `true`, `[1, 2]`); it is never evaluated. RETURNN runs
  `eval` on it or, where it expected a typed value, ignores it; `++flag false` crashes there and is False here.
* `typed_value` therefore also finds such values.
* A getter takes a text from a Python file for a number if it is one (RETURNN: AssertionError), and errors are
  ConfigErrors with the key and the value. `int_pair` takes "100:50" from a Python file, too. `is_true` of a text such
  as "false" or "0" is False.
* A text where a key wants a number is an error, not a warning and a text.
* `#` in the middle of a word is no comment, `key = value` in a line-based file is an error, and `//` inside a JSON
  text is no comment.
* A later file overrides an earlier one whatever their syntaxes (in RETURNN a line-based file never overrides Python).
* `++key=value` and words that belong to nothing get an error that says what to write.
* A file's own directory is also searched by `include`, after the current one; a file that includes itself is an error.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from returnn_hydra.config.errors import ConfigError, nearest
from returnn_hydra.config.json_config import parse_json_config
from returnn_hydra.config.line_config import parse_line_config
from returnn_hydra.config.returnn_values import MODULE, ReturnnConfig
from returnn_hydra.config.text_error import ConfigTextError

Syntax = Literal["python", "json", "lines"]
Active = Callable[[ReturnnConfig], contextlib.AbstractContextManager[Any]]


def load_returnn_config(
    files: Sequence[str | Path],
    overrides: Sequence[tuple[str, str]] = (),
    *,
    declared: Mapping[str, Any] | None = None,
    values: Mapping[str, Any] | None = None,
    active: Active = contextlib.nullcontext,
) -> ReturnnConfig:
    """Read RETURNN config files, with the command line on top.

    The overrides are also known while the files are read: `config.value("key", default)` in a Python file sees them.

    Args:
        files: in their order; a later one overrides single keys of an earlier one.
        overrides: (key, text) of the command line.
        declared: key to type.
        values: further values, set before the files.
        active: entered with the config while Python files run; what makes `get_global_config()` work there.

    Raises:
        ConfigError: a file that can't be read or has an error, or a wrong value; a ConfigTextError has line and column.
    """
    config = ReturnnConfig(declared)
    config.update(values or {})
    config.overrides = list(overrides)
    _apply_overrides(config)
    for file in files:
        load_file(config, str(file), active)
    _apply_overrides(config)
    return config


def _apply_overrides(config: ReturnnConfig) -> None:
    for key, text in config.overrides:
        try:
            config.add_line(key, text)
        except ConfigTextError as error:
            raise ConfigError(f"++{key} {text}: {str(error).split(': ', 1)[-1]}") from error


def detect_syntax(text: str, name: str = "") -> Syntax:
    """How a text with this file name is to be read."""
    content = text.strip()
    if content.startswith("#!") or name.endswith(".py"):
        return "python"
    return "json" if content.startswith("{") else "lines"


def load_file(config: ReturnnConfig, name: str, active: Active = contextlib.nullcontext) -> None:
    """Read one file into the config."""
    text = _read(name)
    config.files.append(name)
    syntax = detect_syntax(text, name)
    if syntax == "python":
        _run_python(config, text, name, active)
    elif syntax == "json":
        config.update(parse_json_config(text, name))
    else:
        _add_lines(config, text, name, active, ())


def _read(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except OSError as error:
        folder = Path(name).parent
        near = nearest(Path(name).name, [path.name for path in folder.iterdir()] if folder.is_dir() else [])
        raise ConfigError(f"config file {name}: {error.strerror or error}{near}") from error
    except ValueError as error:
        raise ConfigError(f"config file {name}: no UTF-8 text ({error})") from error


def _add_lines(config: ReturnnConfig, text: str, name: str, active: Active, parents: tuple[str, ...]) -> None:
    for entry in parse_line_config(text, name):
        if not entry.is_include:
            config.values.pop(entry.key, None)
            config.strings[entry.key] = entry.values
            if entry.key in config.declared:
                _check_entry(config, entry.key, entry.values, name, entry.line)
            continue
        for included in entry.values:
            path = _find_include(included.strip(), name, entry.line)
            if path in (name, *parents):
                raise ConfigTextError(f"{path} includes itself", source=name, line=entry.line)
            included_text = _read(path)
            config.files.append(path)
            if detect_syntax(included_text, path) == "lines":
                _add_lines(config, included_text, path, active, (name, *parents))
            else:
                config.files.pop()
                load_file(config, path, active)


def _check_entry(config: ReturnnConfig, key: str, texts: list[str], name: str, line: int) -> None:
    try:
        config.typed_value(key)
    except ConfigTextError as error:
        message = f"{key}: {','.join(texts)!r}: {str(error).split(': ', 1)[-1]}"
        raise ConfigTextError(message, source=name, line=line) from error


def _find_include(included: str, name: str, line: int) -> str:
    """The included file: relative to the current directory, as in RETURNN, else to the file that names it."""
    for path in (Path(included), Path(name).parent / included):
        if path.is_file():
            return str(path)
    raise ConfigTextError(f"include {included}: no such file", source=name, line=line)


def _run_python(config: ReturnnConfig, text: str, name: str, active: Active) -> None:
    """Run the user's file, in the config's namespace or, inside a package, as that module."""
    try:
        code = compile(text, name, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise ConfigTextError(
            f"Python: {error.msg}", source=name, line=error.lineno or 1, column=error.offset or 1
        ) from error
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise ConfigTextError(f"Python: {error}", source=name) from error
    with active(config):
        try:
            if name.endswith(".py") and (Path(name).resolve().parent / "__init__.py").is_file():
                values = _module_values(Path(name).resolve())
                config.update(values)
                config.python_names.update(values)
            else:
                _run_in_namespace(config, code, name)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(_python_error(error, name)) from error


def _run_in_namespace(config: ReturnnConfig, code: types.CodeType, name: str) -> None:
    config.values.update(__file__=name, __name__=MODULE, __package__="returnn", config=config)
    sys.modules[MODULE] = config.module
    before = dict(config.values)
    exec(code, config.values)
    config.python_names.update(
        key for key, value in config.values.items() if key not in before or value is not before[key]
    )


def _module_values(path: Path) -> dict[str, Any]:
    """The names of a module that is part of a package, so that its relative imports work; always loaded anew."""
    root = path.parent
    parts = [path.stem]
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    dotted = ".".join(parts if parts[-1] != "__init__" else parts[:-1])
    importlib.import_module(dotted.rpartition(".")[0] or dotted)
    spec = importlib.util.spec_from_file_location(dotted, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[dotted] = module
    spec.loader.exec_module(module)
    return {key: value for key, value in vars(module).items() if not key.startswith("__")}


def _python_error(error: Exception, name: str) -> str:
    """`my.config, line 3: NameError: name 'x' is not defined`, with the innermost place in the config file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
    where = f"{name}, line {lines[-1]}" if lines else name
    return f"{where}: {type(error).__name__}: {error}"
