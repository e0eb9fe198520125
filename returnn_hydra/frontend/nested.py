"""Functions over nested structures (states) of tensors, dims and tensor arrays.

A structure holds its dynamic dims beside the tensors that have them. What a function does to the tensors it also does
to the lengths of these dims: they become new dims, and the tensors are cut or padded to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from returnn_hydra.frontend.arrays import expand_dims, replace_dim_v2
from returnn_hydra.frontend.create import copy_to_device
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.elementwise import where
from returnn_hydra.frontend.indexing import gather, masked_scatter, masked_select
from returnn_hydra.frontend.loop import map_nested
from returnn_hydra.frontend.tensor import Tensor
from returnn_hydra.frontend.tensor_array import TensorArray

DimMap = dict[Dim, Dim]


def _with_dims(tensor: Tensor, dim_map: DimMap) -> Tensor:
    """The same values with dims replaced, cut or padded with 0 to the new sizes."""
    for dim in tensor.dims:
        if dim in dim_map:
            tensor = replace_dim_v2(tensor, in_dim=dim, out_dim=dim_map[dim])
    sparse_dim = tensor.sparse_dim
    if sparse_dim is not None and sparse_dim in dim_map:
        tensor = tensor.copy()
        tensor.sparse_dim = dim_map[sparse_dim]
    return tensor


def _map_dims(structure: Any, change: Callable[[Tensor], Tensor], depends_on: Sequence[Dim], dim_map: DimMap) -> None:
    """New dims for those inside whose lengths depend on one of these dims: `change` gives the new lengths."""

    def visit(part: Any) -> None:
        for dim in [part] if isinstance(part, Dim) else part.dims if isinstance(part, Tensor) else []:
            lengths = dim.dyn_size_ext
            if lengths is not None and dim not in dim_map and any(d in lengths.dims for d in depends_on):
                dim_map[dim] = Dim(change(lengths), name=dim.name)

    map_nested(visit, structure)


def _apply(function: Callable[[Tensor], Tensor], dim_map: DimMap, part: Any) -> Any:
    if isinstance(part, Tensor):
        return _with_dims(function(part), dim_map)
    if isinstance(part, Dim):
        return dim_map.get(part, part)
    if isinstance(part, TensorArray):
        new = TensorArray(part.tensor_template)
        new._frames = [_apply(function, dim_map, frame) for frame in part._frames]
        return new
    return part


def gather_nested(s: Any, *, indices: Tensor, dim_map: DimMap | None = None) -> Any:
    """gather of everything that has the dim which `indices` are indices of; the rest stays.

    Args:
        dim_map: gets what dims became.
    """
    axis = indices.sparse_dim
    if axis is None:
        raise ValueError(f"gather_nested: the indices {indices} have no sparse_dim")

    def pick(tensor: Tensor) -> Tensor:
        return gather(tensor, indices=indices, axis=axis) if axis in tensor.dims else tensor

    mapping: DimMap = {} if dim_map is None else dim_map
    indices_cpu = copy_to_device(indices, "cpu")
    _map_dims(s, lambda lengths: gather(lengths, indices=indices_cpu, axis=axis), [axis], mapping)

    def change(part: Any) -> Any:
        if isinstance(part, Dim) and part == axis and len(indices.dims) == 1:
            return indices.dims[0]
        return _apply(pick, mapping, part)

    return map_nested(change, s)


def masked_select_nested(
    s: Any,
    *,
    mask: Tensor,
    mask_cpu: Tensor | None = None,
    dims: Sequence[Dim],
    out_dim: Dim | None = None,
    dim_map: DimMap | None = None,
) -> tuple[Any, Dim, DimMap]:
    """masked_select of everything that has one of these dims; returns the new dim and what other dims became.

    Args:
        mask_cpu: the mask on the CPU, where lengths are.
    """
    _, new_dim = masked_select(mask, mask=mask, dims=dims, out_dim=out_dim or Dim(None, name="packed"))
    cpu = mask_cpu if mask_cpu is not None else copy_to_device(mask, "cpu")

    def pick(tensor: Tensor, chosen: Tensor = mask) -> Tensor:
        if not any(d in tensor.dims for d in dims):
            return tensor
        tensor = expand_dims(tensor, [d for d in dims if d not in tensor.dims])
        chosen = cpu if tensor.device == "cpu" else chosen
        return masked_select(tensor, mask=chosen, dims=dims, out_dim=new_dim)[0]

    mapping: DimMap = {} if dim_map is None else dim_map
    _map_dims(s, pick, list(dims), mapping)
    return map_nested(lambda part: _apply(pick, mapping, part), s), new_dim, mapping


def masked_scatter_nested(
    s: Any,
    backup: Any,
    *,
    mask: Tensor,
    mask_cpu: Tensor | None = None,
    dims: Sequence[Dim],
    in_dim: Dim,
    masked_select_dim_map: DimMap,
    masked_scatter_dim_map: DimMap | None = None,
) -> Any:
    """The opposite of masked_select_nested: entries back to where the mask holds, `backup` elsewhere.

    Args:
        masked_select_dim_map: what masked_select_nested returned.
        masked_scatter_dim_map: gets the dims that differ between both sides, and the new dim of both.
    """
    before_select = {new: old for old, new in masked_select_dim_map.items()}
    merged: DimMap = {} if masked_scatter_dim_map is None else masked_scatter_dim_map
    cpu = mask_cpu if mask_cpu is not None else copy_to_device(mask, "cpu")

    def scatter(tensor: Tensor, other: Tensor) -> Tensor:
        if in_dim not in tensor.dims:
            tensor = expand_dims(tensor, [in_dim])
        chosen = cpu if tensor.device == "cpu" else mask
        return masked_scatter(tensor, other, mask=chosen, dims=dims, in_dim=in_dim)

    def merge_dim(dim: Any, other: Any) -> None:
        if not isinstance(dim, Dim):
            return
        unpacked = before_select.get(dim, dim)
        if unpacked != other and unpacked not in merged:
            new = Dim(scatter(dim.get_size_tensor(), other.get_size_tensor()), name=other.name)
            merged.update({dim: new, unpacked: new, other: new})

    def put(part: Any, other: Any) -> Any:
        if isinstance(part, Dim):
            unpacked = before_select.get(part, part)
            return merged.get(unpacked, unpacked)
        if not isinstance(part, Tensor):
            return part
        return scatter(_with_dims(part, {**before_select, **merged}), _with_dims(other, merged))

    map_nested(merge_dim, s, backup)
    return map_nested(put, s, backup)


def _merge_dims(structure: Any, others: Any, condition: Tensor, dim_map: DimMap) -> None:
    """One dim for every two that differ: the lengths of the first where the condition holds, else of the second."""

    def visit(dim: Any, other: Any) -> None:
        if isinstance(dim, Dim) and isinstance(other, Dim) and dim != other and dim not in dim_map:
            sizes = where(condition, dim.get_size_tensor(), other.get_size_tensor(), allow_broadcast_all_sources=True)
            dim_map[dim] = dim_map[other] = Dim(sizes, name=other.name)

    map_nested(visit, structure, others)


def mask_nested(
    s: Any,
    *,
    mask: Tensor,
    mask_cpu: Tensor | None = None,
    mask_value: Any = None,
    dim_map: DimMap | None = None,
    allow_dim_extension: bool = True,
) -> Any:
    """Everything where the mask holds, elsewhere `mask_value` (a number, or a structure like `s`).

    Args:
        dim_map: gets what dims became.
        allow_dim_extension: False: what lacks dims of the mask stays as it is.
    """
    cpu = mask_cpu if mask_cpu is not None else copy_to_device(mask, "cpu")
    mapping: DimMap = {} if dim_map is None else dim_map
    structured = isinstance(mask_value, type(s)) and not isinstance(mask_value, (int, float))
    if structured and allow_dim_extension:
        _merge_dims(s, mask_value, cpu, mapping)

    def keep(part: Any, other: Any = mask_value) -> Any:
        if isinstance(part, Dim):
            return mapping.get(part, part)
        if not isinstance(part, Tensor) or other is None:
            return part
        part = _with_dims(part, mapping)
        other = _with_dims(other, mapping) if isinstance(other, Tensor) else other
        has_dims = mask.dims_set <= part.dims_set and (not isinstance(other, Tensor) or other.dims_set <= part.dims_set)
        if not has_dims and (not allow_dim_extension or (not isinstance(other, Tensor) and other == 0)):
            return part
        chosen = cpu if part.device == "cpu" else mask
        return where(chosen, part, other, allow_broadcast_all_sources=True)

    return map_nested(keep, s, mask_value) if structured else map_nested(keep, s)


def where_nested(x: Any, y: Any, *, condition: Tensor, condition_cpu: Tensor | None = None) -> Any:
    """x where the condition holds, else y; dims that differ become one."""
    cpu = condition_cpu if condition_cpu is not None else copy_to_device(condition, "cpu")
    mapping: DimMap = {}
    _merge_dims(x, y, cpu, mapping)

    def choose(a: Any, b: Any) -> Any:
        if isinstance(a, Tensor):
            chosen = cpu if a.device == "cpu" else condition
            return where(chosen, _with_dims(a, mapping), _with_dims(b, mapping), allow_broadcast_all_sources=True)
        return mapping.get(a, a) if isinstance(a, Dim) else a

    return map_nested(choose, x, y)
