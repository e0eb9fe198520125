"""Every name of RETURNN that two or more public projects use: it works, or says on use what to do instead.

`names/used_names.txt` has the names, how many projects use each, and its fate; see its first lines.
"""

import importlib
import inspect
from pathlib import Path

import pytest

import returnn_hydra
from returnn_hydra.compat.import_hook import returnn_imports
from returnn_hydra.config.returnn_keys import KEYS
from returnn_hydra.frontend.dim import Dim, batch_dim
from returnn_hydra.frontend.run_ctx import RunCtx
from returnn_hydra.frontend.tensor import Tensor

ROWS = [
    line.split(" ")
    for line in (Path(__file__).parent / "names" / "used_names.txt").read_text().splitlines()
    if not line.startswith("#")
]
SOURCES = Path(returnn_hydra.__file__).parent


def rows(kind):
    return [(name, fate) for k, fate, _, name in ROWS if k == kind]


@pytest.fixture(scope="module", autouse=True)
def returnn():
    with returnn_imports():
        yield


def resolve(name):
    module, _, attribute = name.partition(":")
    return (
        getattr(__import__(module, fromlist=[attribute]), attribute) if attribute else importlib.import_module(module)
    )


@pytest.mark.parametrize(("name", "fate"), rows("import"))
def test_imports(name, fate):
    found = resolve(name)
    assert found is not None
    if fate == "annotation":
        with pytest.raises(TypeError, match="annotations and isinstance only"):
            found()
    elif fate == "nothing":
        assert found() is None
    elif fate == "refused":
        with pytest.raises(Exception, match=r"not there in returnn-hydra: .{20}|: start scripts/rnn.py"):
            found()
    else:
        assert fate == "works"


@pytest.mark.parametrize(("name", "fate"), rows("rf"))
def test_frontend(name, fate):
    found = importlib.import_module("returnn.frontend")
    for part in name.split("."):
        found = getattr(found, part)
    assert found is not None
    assert fate == "works"


@pytest.mark.parametrize(("name", "fate"), rows("attribute"))
def test_attributes(name, fate):
    dim = Dim(3, name="feature")
    objects = (Tensor("x", dims=[batch_dim, dim], dtype="float32"), dim, RunCtx(stage="init"))
    assert any(name in dir(thing) for thing in objects)
    assert fate == "works"


def test_the_120_most_used_keys():
    found = {name: KEYS[name].fate for name, _ in rows("key")}
    assert found == dict(rows("key"))
    assert len(found) == 120


def test_what_the_table_says_is_done_is_done():
    text = "\n".join(path.read_text() for path in SOURCES.rglob("*.py"))
    for key in KEYS.values():
        if key.fate in ("translated", "used"):
            assert text.count(f'"{key.name}"') > 1, f"{key.name}: nothing but the table names it"
        else:
            assert len(key.ours) > 10, f"{key.name}: no reason"


def test_a_name_that_is_not_used_says_what_there_is():
    with pytest.raises(AttributeError, match="did you mean reduce_sum"):
        resolve("returnn.frontend:reduce_summ")
    with pytest.raises(ModuleNotFoundError, match=r"returnn\.tensor"):
        resolve("returnn.tensors")


def test_names_are_not_only_strings():
    """Functions of the frontend are documented."""
    module = importlib.import_module("returnn.frontend")
    functions = [getattr(module, name) for name, _ in rows("rf") if "." not in name]
    assert all(inspect.getdoc(function) for function in functions if inspect.isfunction(function))
