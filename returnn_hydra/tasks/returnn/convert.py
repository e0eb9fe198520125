"""A RETURNN configuration as YAML and a Python module: settings in the one, code in the other.

`FOLDER/experiment/NAME.yaml` has every setting that is plain data, so that it can be overridden and swept;
`FOLDER/NAME.py` the functions and classes, and what YAML can't hold (Dim objects, tuples as keys). What stands in the
YAML file wins over an assignment in the module. Run it with
`python run.py --config-dir=FOLDER experiment=NAME`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from returnn_hydra.config.returnn_config import detect_syntax
from returnn_hydra.config.returnn_keys import KEYS
from returnn_hydra.engine.files import FileSystem, write_text
from returnn_hydra.tasks.returnn.session import open_session

HEADER = "# @package _global_\n# Made from {files}; the code is in {module}\n"


def convert(files: Sequence[str], overrides: Sequence[tuple[str, str]], folder: Path, name: str) -> tuple[Path, Path]:
    """Write the two files; returns their paths: (YAML, Python).

    Raises:
        ConfigError: the configuration is wrong.
    """
    session = open_session(files, overrides)
    module = folder / f"{name}.py"
    settings = {*KEYS, *(key for key, _ in overrides)}
    plain = {key: value for key, value in session.values.items() if key in settings and is_plain(value)}
    content = {"returnn_config": str(module.resolve()), "returnn": plain}
    header = HEADER.format(files=", ".join(map(str, files)), module=module.name)
    file = folder / "experiment" / f"{name}.yaml"
    disk = FileSystem()
    disk.make_folder(file.parent)
    write_text(disk, module, "".join(["#!rnn.py\n", *map(_code, files)]))
    write_text(disk, file, header + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return file, module


def is_plain(value: Any) -> bool:
    """Whether YAML gives back exactly this."""
    if isinstance(value, Mapping):
        return type(value) is dict and all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(is_plain, value))
    # OmegaConf would take ${...} for an interpolation
    return value is None or type(value) in (bool, int, float) or (type(value) is str and "${" not in value)


def _code(file: str) -> str:
    """The Python code of one file; none of a file with settings only."""
    path = Path(file).resolve()
    text = path.read_text(encoding="utf-8")
    if detect_syntax(text, file) != "python":
        return ""
    if (path.parent / "__init__.py").is_file():
        return _import_of(path)
    place = f"__file__ = {str(path)!r}  # other files are looked for beside it\n" if "__file__" in text else ""
    return f"\n# --- {path.name}\n{place}{text}\n"


def _import_of(path: Path) -> str:
    """A file inside a package stays there, so that its relative imports work."""
    root, parts = path.parent, [path.stem]
    while (root / "__init__.py").is_file():
        parts.insert(0, root.name)
        root = root.parent
    return f"\nimport sys\n\nsys.path.insert(0, {str(root)!r})\nfrom {'.'.join(parts)} import *\n"
