"""RETURNN's options of a stream (`{"dim": 9, "sparse": True, ...}`), or its template in the frontend, as our specs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from returnn_hydra.batch import TensorSpec
from returnn_hydra.compat.vocab_dicts import vocab_node
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.frontend.tensor import Tensor

Node = dict[str, Any]
_KEYS = ("dim", "shape", "sparse", "dtype", "available_for_inference")


def stream_nodes(entries: Mapping[str, Any], path: str) -> dict[str, Node]:
    """The specs of several streams by name.

    Args:
        path: where they stand in the config, for errors: `extern_data`.

    Raises:
        ConfigError: an entry has axes that only the frontend knows.
    """
    return {name: _stream(dict(entry), f"{path}.{name}") for name, entry in entries.items()}


def _stream(entry: Node, path: str) -> Node:
    node: Node = {}
    for key in _KEYS:
        value = entry.pop(key, None)
        if value is not None:
            node[key] = list(value) if key == "shape" else value
    if (vocab := entry.pop("vocab", None)) is not None:
        node["vocab"] = vocab_node(vocab, f"{path}.vocab")
    no_time = entry.pop("time_dim_axis", 0) is None
    if no_time and "shape" not in node:
        node["shape"] = [] if node.get("sparse") or "vocab" in node else [node.get("dim")]
    entry.pop("name", None)
    if entry.get("batch_dim_axis") == 0:
        del entry["batch_dim_axis"]
    rest = [key for key, value in entry.items() if value is not None]
    if rest:
        raise ConfigError(f"{path}: {', '.join(map(repr, rest))} only works in the frontend")
    return node


def spec_of_template(tensor: Tensor) -> TensorSpec:
    """One stream as the data has it: without batch, the time axis first."""
    axes = [dim for dim in tensor.dims if not dim.is_batch_dim()]
    time = next((dim for dim in axes if dim.dimension is None), None)
    if time is not None and time is not tensor.feature_dim:
        axes = [time, *(dim for dim in axes if dim is not time)]
    sparse_dim = tensor.sparse_dim
    return TensorSpec(
        dim=sparse_dim.dimension if sparse_dim is not None else None,
        shape=tuple(dim.dimension for dim in axes),
        sparse=sparse_dim is not None,
        dtype=tensor.dtype,
        available_for_inference=tensor.available_for_inference,
        vocab=sparse_dim.vocab if sparse_dim is not None else None,
    )
