"""Module names that configs import TensorFlow under, and what they get."""

from __future__ import annotations

import types
from functools import lru_cache
from typing import Any

import torch

from returnn_hydra.network.activations import safe_exp, safe_log
from returnn_hydra.network.errors import NetworkError
from returnn_hydra.network.expressions import Namespace
from returnn_hydra.network.tf_face.data import DeclaredData
from returnn_hydra.network.tf_face.namespace import tf_namespace, where_bc
from returnn_hydra.network.tf_face.tensor import as_tensor, tf_tensor


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


@lru_cache(maxsize=1)
def tensorflow_modules() -> dict[str, types.ModuleType]:
    """Module name to module, to be found by `import` while a config is loaded and runs."""
    tf = tf_namespace()
    compat = FaceModule("returnn.tf.compat", {"v1": FaceModule("tensorflow", tf), "v2": FaceModule("tensorflow", tf)})
    modules = [
        FaceModule("tensorflow", tf),
        FaceModule("tensorflow.compat", tf.compat),
        FaceModule("tensorflow.compat.v1", tf),
        FaceModule("tensorflow.compat.v2", tf),
        compat,
        FaceModule("returnn.tf.compat.v1", tf),
        FaceModule("returnn.tf.util.basic", HELPERS),
        FaceModule("TFUtil", HELPERS),
    ]
    return {**{module.__name__: module for module in modules}, "TFCompat": compat}


def expand_dims_unbroadcast(x: Any, axis: int, dim: Any, name: str | None = None) -> Any:
    """A new axis of size `dim`, filled by repetition."""
    sizes = list(x.shape)
    place = axis % (len(sizes) + 1)
    return x.unsqueeze(place).expand(*sizes[:place], int(dim), *sizes[place:])


def tile_transposed(x: Any, axis: int, multiples: Any) -> Any:
    """Repeat every entry along an axis: a a b b."""
    return x.repeat_interleave(int(multiples), axis)


def nd_indices(indices: Any, indices_batch_major: bool = True) -> Any:
    """(B, ...) indices with the number of their batch entry before them: (B, ..., 2)."""
    indices = as_tensor(indices)
    if not indices_batch_major:
        raise NetworkError("nd_indices: only batch-major indices are supported")
    rows = torch.arange(indices.shape[0], device=indices.device).reshape(-1, *[1] * (indices.dim() - 1))
    return tf_tensor(torch.stack([rows.expand_as(indices).to(indices.dtype), indices], -1))


def linear_alignment(
    input_lens: Any,
    targets: Any,
    target_lens: Any,
    blank_label_idx: int,
    pad_value: int = 0,
    targets_consume_time: bool = False,
) -> tuple[Any, Any]:
    """Labels spread evenly over the frames, blanks between them.

    Args:
        input_lens: (B,) frames.
        targets: (B, S) labels.
        target_lens: (B,).
        targets_consume_time: a label takes a frame; else the result has frames + labels entries.

    Returns:
        (B, T), and its lengths (B,).
    """
    frames, labels, counts = as_tensor(input_lens).long(), as_tensor(targets), as_tensor(target_lens).long()
    lengths = frames if targets_consume_time else frames + counts
    place = torch.arange(labels.shape[1], device=labels.device)
    out = torch.full((len(lengths), int(lengths.max())), blank_label_idx, dtype=labels.dtype, device=labels.device)
    for row, length, count, given in zip(out, lengths.tolist(), counts.tolist(), labels, strict=True):
        total = max(length, count)
        at = (torch.round((place[:count] + 1) * ((total + 1) / (count + 1))).long() - 1).clamp(0, total - 1)
        row[at[at < length]] = given[:count][at < length]
        row[length:] = pad_value
    return tf_tensor(out), tf_tensor(lengths.to(torch.int32))


def _nothing(*_arguments: Any, **_options: Any) -> None:
    """There are no sessions, and no devices to prepare."""


def _refusing(name: str, instead: str) -> Any:
    """A function that can be imported, and is an error when it is called."""

    def refuse(*_arguments: Any, **_options: Any) -> Any:
        raise NetworkError(f"returnn.tf.util.basic.{name} is not there in returnn-hydra: {instead}")

    return refuse


HELPERS: dict[str, Any] = {
    "Data": DeclaredData,
    "where_bc": where_bc,
    "safe_log": safe_log,
    "safe_exp": safe_exp,
    "expand_dims_unbroadcast": expand_dims_unbroadcast,
    "tile_transposed": tile_transposed,
    "nd_indices": nd_indices,
    "get_rnnt_linear_aligned_output": linear_alignment,
    "check_input_dim": lambda x, axis, dim: x,
    "get_shape_dim": lambda x, axis, name=None: x.shape[axis],
    "get_shape": lambda x: list(x.shape),
    "print_available_devices": _nothing,
    "setup_tf_thread_pools": _nothing,
    "debug_register_better_repr": _nothing,
    "get_shared_vocab": _refusing("get_shared_vocab", "tensors hold no texts; look labels up in forward_callback"),
    "OpCodeCompiler": _refusing("OpCodeCompiler", "no C++ code is compiled; write the function with torch"),
}
"""What RETURNN's `returnn.tf.util.basic` offers to functions of configs."""
