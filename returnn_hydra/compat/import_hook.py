"""Makes `import returnn...` mean this project, while a RETURNN config is loaded or runs, and only then.

`RETURNN_NAMES` says which of our modules stands for which of RETURNN's; everything below `returnn.frontend` is
`returnn_hydra.frontend`. To add a module, write it (in `compat/shim/` if it only renames things) and add a line to
the table. Modules without a file of their own are made: names for annotations (`shim/names_only.py`), and what a config
imports of TensorFlow (`network/tf_face`).
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from returnn_hydra.compat.shim.names_only import CLASSES, REFUSED, names_only_modules

_SHIM = "returnn_hydra.compat.shim"
_FRONTEND = "returnn_hydra.frontend"

RETURNN_NAMES: dict[str, str] = {
    "returnn": f"{_SHIM}.root",
    "returnn.frontend": _FRONTEND,
    "returnn.frontend.array_": f"{_FRONTEND}.arrays",
    "returnn.frontend.math_": f"{_FRONTEND}.elementwise",
    "returnn.frontend.const": f"{_FRONTEND}.create",
    "returnn.frontend.normalization": f"{_FRONTEND}.normalization",
    "returnn.frontend.matmul": f"{_FRONTEND}.linear",
    "returnn.frontend.dropout": f"{_FRONTEND}.rand",
    "returnn.frontend.cond": f"{_FRONTEND}.loop",
    **{
        f"returnn.frontend.{name}": _FRONTEND
        for name in (
            "backend",
            "control_flow_ctx",
            "device",
            "dims",
            "dtype",
            "label_smoothing",
            "loss",
            "static_traceable",
            "tensor_layout",
            "types",
        )
    },
    "returnn.frontend.stepwise_scheduler": f"{_FRONTEND}.piecewise_linear",
    "returnn.frontend.parametrizations": f"{_FRONTEND}.parametrize",
    "returnn.tensor": f"{_SHIM}.tensor",
    "returnn.tensor.tensor": f"{_SHIM}.tensor",
    "returnn.tensor.dim": f"{_SHIM}.tensor",
    "returnn.tensor.tensor_dict": f"{_SHIM}.tensor",
    "returnn.tensor.marked_dim": f"{_SHIM}.tensor",
    "returnn.forward_iface": f"{_SHIM}.forward_iface",
    "returnn.config": f"{_SHIM}.config",
    "returnn.log": f"{_SHIM}.log",
    "returnn.import_": f"{_SHIM}.import_",
    "returnn.util": f"{_SHIM}.util",
    "returnn.util.basic": f"{_SHIM}.util",
    "returnn.util.math": f"{_SHIM}.util_math",
    "returnn.util.pprint": f"{_SHIM}.util_pprint",
    "returnn.util.debug": f"{_SHIM}.util_debug",
    "returnn.util.better_exchook": f"{_SHIM}.util_debug",
    "returnn.util.file_cache": f"{_SHIM}.file_cache",
    "returnn.util.literal_py_to_pickle": f"{_SHIM}.util_literal",
    "returnn.torch": f"{_SHIM}.torch",
    "returnn.torch.context": f"{_SHIM}.torch_context",
    "returnn.torch.data": f"{_SHIM}.torch",
    "returnn.torch.data.pipeline": f"{_SHIM}.torch_pipeline",
    "returnn.torch.data.extern_data": f"{_SHIM}.torch_extern_data",
    "returnn.torch.data.tensor_utils": f"{_SHIM}.tensor_utils",
    "returnn.torch.frontend": f"{_SHIM}.torch_frontend",
    "returnn.torch.frontend.bridge": f"{_FRONTEND}.bridge",
    "returnn.torch.util": f"{_SHIM}.torch",
    "returnn.torch.util.diagnose_gpu": f"{_SHIM}.diagnose_gpu",
    "returnn.engine": f"{_SHIM}.torch",
    "returnn.__main__": f"{_SHIM}.main",
    "returnn.rnn": f"{_SHIM}.main",
    "returnn.tensor.utils": f"{_SHIM}.tensor_utils",
    "returnn.tf": f"{_SHIM}.torch",
    "returnn.tf.layers": f"{_SHIM}.torch",
    "returnn.tf.util": f"{_SHIM}.torch",
    "returnn.tf.util.data": f"{_SHIM}.tf_data",
    "returnn.datasets": f"{_SHIM}.datasets",
    "returnn.datasets.basic": f"{_SHIM}.datasets",
    "returnn.datasets.postprocessing": f"{_SHIM}.postprocessing",
    "returnn.datasets.hdf": f"{_SHIM}.datasets_hdf",
    "returnn.datasets.lm": f"{_SHIM}.datasets_lm",
    "returnn.datasets.util.cleaners": f"{_SHIM}.datasets_lm",
    "returnn.datasets.util": f"{_SHIM}.datasets_util",
    "returnn.datasets.util.hdf": f"{_SHIM}.datasets_hdf",
    "returnn.datasets.util.vocabulary": f"{_SHIM}.vocabulary",
    "returnn.datasets.generating": f"{_SHIM}.vocabulary",
    "returnn.pretrain": f"{_SHIM}.pretrain",
}
"""RETURNN's module -> ours. Modules that do not exist in this installation are reported when they are imported."""

OLD_NAMES: dict[str, str] = {
    "Config": "config",
    "Dataset": "datasets.basic",
    "CachedDataset2": "datasets.cached2",
    "EngineBase": "engine.base",
    "GeneratingDataset": "datasets.generating",
    "HDFDataset": "datasets.hdf",
    "HyperParamTuning": "tf.hyper_param_tuning",
    "LearningRateControl": "learning_rate_control",
    "LmDataset": "datasets.lm",
    "Log": "log",
    "MetaDataset": "datasets.meta",
    "Pretrain": "pretrain",
    "TFDataPipeline": "tf.data_pipeline",
    "TFEngine": "tf.engine",
    "TFNetwork": "tf.network",
    "TFNetworkLayer": "tf.layers.basic",
    "TFNetworkRecLayer": "tf.layers.rec",
    "Util": "util.basic",
    "better_exchook": "util.better_exchook",
    "rnn": "__main__",
}
"""Modules before 2020, on their own or below `returnn`, and where they are below `returnn` since then. On their own
they are answered only where no other module has the name."""

_PREFIXES = {"returnn.frontend.": f"{_FRONTEND}."}
_STAND_INS = {"tree": f"{_SHIM}.tree"}
"""Packages that come with RETURNN, and what stands for them where they are not installed."""
_ROOTS = ("returnn", "tensorflow", "TFCompat", "TFUtil")
"""First parts of the names that the hook answers."""


@functools.cache
def _made_modules() -> dict[str, types.ModuleType]:
    """Modules without a file, by RETURNN's name."""
    from returnn_hydra.compat.shim.tf_data import DimensionTag
    from returnn_hydra.network.tf_face import tensorflow_modules  # most configs need none of it

    facades = {name: _Facade(name, module) for name, module in names_only_modules().items()}
    faces = tensorflow_modules()
    for name in ("returnn.tf.util.basic", "TFUtil"):
        vars(faces[name])["DimensionTag"] = DimensionTag  # the network room knows no dims
    return {**facades, **faces}


def _is_made(name: str) -> bool:
    root = name.partition(".")[0]
    return (
        root in _ROOTS
        and (root != "returnn" or name.startswith("returnn.tf.") or name in CLASSES or name in REFUSED)
        and (name in _made_modules())
    )


def our_module(name: str) -> str | None:
    """The name of our module for one of RETURNN's; None if there is none."""
    if name in RETURNN_NAMES:
        return RETURNN_NAMES[name]
    for prefix, ours in _PREFIXES.items():
        if name.startswith(prefix):
            candidate = ours + name[len(prefix) :]
            return candidate if _exists(candidate) else None
    return None


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


class _Loader(importlib.abc.Loader):
    """Puts our module under RETURNN's name into sys.modules."""

    def __init__(self, name: str, ours: str) -> None:
        self._name, self._ours = name, ours

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        target = importlib.import_module(self._ours)
        sys.modules[self._name] = _Facade(self._name, target)


class _AliasLoader(importlib.abc.Loader):
    """Puts a module of RETURNN's under an older name into sys.modules."""

    def __init__(self, name: str, new: str) -> None:
        self._name, self._new = name, new

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        sys.modules[self._name] = importlib.import_module(self._new)


class _MadeLoader(importlib.abc.Loader):
    """Puts a module that is made already into sys.modules."""

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _made_modules()[spec.name]

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


class _Facade(types.ModuleType):
    """Our module under RETURNN's name; a name that it lacks is answered with what there is."""

    def __init__(self, name: str, target: types.ModuleType) -> None:
        super().__init__(name, target.__doc__)
        self.__dict__["__path__"] = []  # a package, so that modules below it can be imported
        self.__dict__["_target"] = target
        self.__dict__["__all__"] = _public_names(target)  # for `from module import *`

    def __getattr__(self, name: str) -> Any:
        target = self.__dict__["_target"]
        if (
            name.startswith("__")
            and name.endswith("__")
            and name not in ("__version__", "__long_version__", "__file__")
        ):
            raise AttributeError(name)
        if hasattr(target, name):
            return getattr(target, name)
        full = f"{self.__name__}.{name}"
        if our_module(full) is not None or _is_made(full):
            return importlib.import_module(full)
        available = _public_names(target)
        near = difflib.get_close_matches(name, available, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise AttributeError(
            f"{self.__name__} has no '{name}' in returnn-hydra{hint} There are: {', '.join(available)}"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, types.ModuleType) or name.startswith("__"):
            super().__setattr__(name, value)
        else:
            setattr(self.__dict__["_target"], name, value)

    def __dir__(self) -> list[str]:
        return dir(self.__dict__["_target"])


def _public_names(module: types.ModuleType) -> list[str]:
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name != "annotations"
    ]
    return sorted(names)


class _Finder:
    """Answers imports of `returnn` and everything below, and of TensorFlow."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in _STAND_INS and importlib.machinery.PathFinder.find_spec(name) is None:
            return ModuleSpec(name, _Loader(name, _STAND_INS[name]))
        old = name.removeprefix("returnn.")
        if old in OLD_NAMES and our_module(name) is None and (old != name or _is_free(name)):
            return ModuleSpec(name, _AliasLoader(name, f"returnn.{OLD_NAMES[old]}"), is_package=True)
        root = name.partition(".")[0]
        if root not in _ROOTS or (root != "returnn" and _asked_by_a_library()):
            return None
        if _is_made(name):
            return ModuleSpec(name, _MadeLoader(), is_package=True)
        if root != "returnn":
            return None
        ours = our_module(name)
        if ours is None or not _exists(ours):
            known = sorted(known for known, module in RETURNN_NAMES.items() if _exists(module))
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ModuleNotFoundError(
                f"'{name}' is not there in returnn-hydra{hint} These modules of RETURNN are: {', '.join(known)},"
                " and those below returnn.frontend",
                name=name,
            )
        return ModuleSpec(name, _Loader(name, ours), is_package=True)


def _is_free(name: str) -> bool:
    """No other module has this name, and a config asks for it."""
    return importlib.machinery.PathFinder.find_spec(name) is None and not _asked_by_a_library()


def _asked_by_a_library() -> bool:
    """Whether an installed package does the import, and not a config: tensorboard looks for TensorFlow, for example."""
    frame = sys._getframe(1)
    while frame is not None and ("importlib" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None and bool({"site-packages", "dist-packages"} & {*Path(frame.f_code.co_filename).parts})


def _returnn_modules() -> dict[str, types.ModuleType]:
    roots = {*_ROOTS, *(name for name in OLD_NAMES if isinstance(sys.modules.get(name), _Facade))}
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in roots}


_finder = _Finder()


@contextlib.contextmanager
def returnn_imports() -> Iterator[None]:
    """`import returnn...` means this project inside the block, and `import tensorflow` its small face over torch.

    May be nested. A really installed RETURNN is as before afterwards, also if it was imported already.
    """
    if _finder in sys.meta_path:
        yield
        return
    real = _returnn_modules()
    for name in real:
        del sys.modules[name]
    sys.meta_path.insert(0, _finder)
    try:
        yield
    finally:
        sys.meta_path.remove(_finder)
        for name in _returnn_modules():
            del sys.modules[name]
        for name in _STAND_INS:
            if isinstance(sys.modules.get(name), _Facade):
                del sys.modules[name]
        sys.modules.update(real)
