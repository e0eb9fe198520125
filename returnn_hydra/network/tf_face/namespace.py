"""`tf` as expressions and functions of configs see it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.activations import ELEMENTWISE, safe_exp, safe_log
from returnn_hydra.network.expressions import Namespace
from returnn_hydra.network.tf_face import functions
from returnn_hydra.network.tf_face import rare_functions as rare
from returnn_hydra.network.tf_face.tensor import Dimension, TfShape, TfTensor, as_tensor


@contextlib.contextmanager
def _scope(*_: Any, **__: Any) -> Iterator[None]:
    """Name scopes, devices and control dependencies mean nothing here."""
    yield


@lru_cache(maxsize=1)
def tf_namespace() -> Namespace:
    """The whole of `tf` that is covered; `tf.compat.v1` is the same."""
    members: dict[str, Any] = {
        **functions.TABLE,
        **rare.PLAIN,
        **dict.fromkeys(rare.ASSERTIONS, rare.nothing),
        "Tensor": Tensor,
        "TensorShape": TfShape,
        "Variable": Tensor,
        "Dimension": Dimension,
        "nn": Namespace("tf.nn", {**functions.NN, **rare.NN}),
        "math": Namespace("tf.math", {**functions.MATH, **rare.MATH}),
        "random": Namespace("tf.random", {**functions.RANDOM, **rare.RANDOM}),
        "linalg": Namespace(
            "tf.linalg", {"matmul": functions.matmul, "norm": functions.norm, "band_part": rare.band_part}
        ),
        "debugging": Namespace("tf.debugging", dict.fromkeys(rare.ASSERTIONS, rare.nothing)),
        "summary": Namespace("tf.summary", dict.fromkeys(rare.SUMMARIES, rare.nothing)),
        "name_scope": _scope,
        "variable_scope": _scope,
        "device": _scope,
        "control_dependencies": _scope,
        "Print": lambda x, *_, **__: x,
    }
    v1 = Namespace("tf.compat.v1", members)
    return Namespace("tf", {**members, "compat": Namespace("tf.compat", {"v1": v1, "v2": v1}), "v1": v1})


def where_bc(condition: Any, x: Any, y: Any, name: str | None = None) -> Tensor:
    """Select, all three broadcast."""
    test = as_tensor(condition)
    a = as_tensor(x, y if isinstance(y, Tensor) else None)
    b = as_tensor(y, a)
    device = b.device if b.dim() else a.device
    dtype = torch.promote_types(a.dtype, b.dtype)
    return torch.where(test.to(device), a.to(device, dtype), b.to(device, dtype)).as_subclass(TfTensor)


SHORT_NAMES: dict[str, Callable[..., Any] | Any] = {
    **{name: (lambda x, f=function: f(as_tensor(x))) for name, function in ELEMENTWISE.items()},
    "safe_log": lambda x, **options: safe_log(as_tensor(x), **options),
    "safe_exp": lambda x, **options: safe_exp(as_tensor(x), **options),
    "softmax": functions.softmax,
    "log_softmax": functions.log_softmax,
    "where_bc": where_bc,
    "min": min,
    "max": max,
    "abs": abs,
    "float": float,
    "int": int,
    "len": len,
    "range": range,
    "True": True,
    "False": False,
    "None": None,
}
"""What an expression may use without `tf.`"""
