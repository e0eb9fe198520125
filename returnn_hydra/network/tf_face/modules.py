"""Module names that configs import TensorFlow under, and what they get."""

from __future__ import annotations

import types
from typing import Any

from returnn_hydra.network.activations import safe_exp, safe_log
from returnn_hydra.network.errors import NetworkError
from returnn_hydra.network.expressions import Namespace
from returnn_hydra.network.tf_face.namespace import tf_namespace, where_bc


class FaceModule(types.ModuleType):
    """A module made of a table; a name that is not in it is an error that says so."""

    def __init__(self, name: str, members: Any) -> None:
        super().__init__(name)
        self.__dict__["_face"] = members if isinstance(members, Namespace) else Namespace(name, members)
        self.__dict__["__path__"] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return getattr(self.__dict__["_face"], name)
        except NetworkError as error:
            raise NetworkError(
                f"this config uses {self.__name__}.{name}, which the TensorFlow face lacks: {error}"
            ) from None


def tensorflow_modules() -> dict[str, types.ModuleType]:
    """Module name to module, to be put into `sys.modules` while a config is loaded."""
    tf = tf_namespace()
    helpers = {"where_bc": where_bc, "safe_log": safe_log, "safe_exp": safe_exp, "expand_dims_unbroadcast": _expand}
    compat = FaceModule("returnn.tf.compat", {"v1": FaceModule("tensorflow", tf), "v2": FaceModule("tensorflow", tf)})
    return {
        "tensorflow": FaceModule("tensorflow", tf),
        "tensorflow.compat": FaceModule("tensorflow.compat", tf.compat),
        "tensorflow.compat.v1": FaceModule("tensorflow.compat.v1", tf),
        "returnn.tf.compat": compat,
        "returnn.tf.compat.v1": FaceModule("returnn.tf.compat.v1", tf),
        "TFCompat": compat,
        "TFUtil": FaceModule("TFUtil", helpers),
        "returnn.tf.util.basic": FaceModule("returnn.tf.util.basic", helpers),
    }


def _expand(x: Any, axis: int, dim: Any, name: str | None = None) -> Any:
    """A new axis of size `dim`, filled by repetition."""
    sizes = list(x.shape)
    place = axis % (len(sizes) + 1)
    return x.unsqueeze(place).expand(*sizes[:place], int(dim), *sizes[place:])
