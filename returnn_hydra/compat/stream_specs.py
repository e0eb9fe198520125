"""RETURNN's options of a stream (`{"dim": 9, "sparse": True, ...}`), or its template in the frontend, as our specs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from returnn_hydra.batch import TensorSpec
from returnn_hydra.compat.vocab_dicts import vocab_node
from returnn_hydra.config.errors import ConfigError
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.tensor import Tensor

Node = dict[str, Any]
_KEYS = ("dim", "shape", "sparse", "dtype", "available_for_inference")


def stream_nodes(entries: Mapping[str, Any], path: str) -> dict[str, Node]:
    """The specs of several streams by name.

    Args:
        path: where they stand in the config, for errors: `extern_data`.

    Raises:
        ConfigError: an entry has options that only the frontend knows, or something else than axes as such.
    """
    nodes: dict[str, Node] = {}
    first: dict[int, str] = {}  # of every time axis that a config names, the stream that has it first
    for name, given in entries.items():
        entry = dict(given)
        time = _time_tag(entry, f"{path}.{name}")
        nodes[name] = _stream(entry, f"{path}.{name}")
        if time is not None and first.setdefault(id(time), name) != name:
            nodes[name]["same_length_as"] = first[id(time)]
    return nodes


def _time_tag(entry: Node, path: str) -> Dim | None:
    """The time axis as an object of the config; the options that name it are taken out of the entry."""
    tags = {str(key).lower(): tag for key, tag in (entry.pop("same_dim_tags_as", None) or {}).items()}
    dims = entry.pop("dim_tags", None)
    if dims is not None:
        if not all(isinstance(dim, Dim) for dim in dims):
            raise ConfigError(f"{path}.dim_tags must be a list of dims (batch_dim, SpatialDim, ...)")
        axes = [dim for dim in dims if not dim.is_batch_dim()]
        entry["shape"] = [dim.dimension for dim in axes]
        tags = {"t": next((dim for dim in axes if dim.dimension is None), None)}
        if entry.get("sparse_dim") is None and not entry.get("sparse") and entry["shape"]:
            entry.setdefault("dim", entry["shape"][-1])
    sparse_dim = entry.pop("sparse_dim", None)
    if sparse_dim is not None:
        entry |= {"sparse": True, "dim": sparse_dim.dimension}
    return tags.get("t", tags.get("time"))


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
