"""Functions over nested structures (states) of tensors, dims and tensor arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.elementwise import where
from returnn_hydra.frontend.indexing import gather, masked_scatter, masked_select
from returnn_hydra.frontend.loop import map_nested
from returnn_hydra.frontend.tensor import Tensor
from returnn_hydra.frontend.tensor_array import TensorArray

DimMap = dict[Dim, Dim]


def _renamed(tensor: Tensor, dim_map: DimMap) -> Tensor:
    """The same values with dims replaced."""
    dims = [dim_map.get(d, d) for d in tensor.dims]
    out = tensor._new(dims, tensor.raw_tensor)
    out.sparse_dim = dim_map.get(tensor.sparse_dim, tensor.sparse_dim) if tensor.sparse_dim is not None else None
    if tensor.feature_dim is not None:
        out.feature_dim = dim_map.get(tensor.feature_dim, tensor.feature_dim)
    return out


def _mapped_dims(value: Any, change: Any, depends_on: Sequence[Dim]) -> DimMap:
    """New dims for those inside `value` whose lengths depend on one of these dims: `change` gives the new lengths."""
    result: DimMap = {}
    for dim in _dims_inside(value):
        lengths = dim.dyn_size_ext
        if lengths is not None and dim not in result and any(d in lengths.dims for d in depends_on):
            new = change(lengths)
            result[dim] = Dim(None, name=dim.name, dyn_size_ext=new)
    return result


def _dims_inside(value: Any) -> list[Dim]:
    dims: list[Dim] = []

    def visit(part: Any) -> None:
        if isinstance(part, Dim):
            dims.append(part)
        elif isinstance(part, Tensor):
            dims.extend(part.dims)

    map_nested(visit, value)
    return dims


def _apply(function: Any, dim_map: DimMap, part: Any) -> Any:
    if isinstance(part, Tensor):
        return _renamed(function(part), dim_map)
    if isinstance(part, Dim):
        return dim_map.get(part, part)
    if isinstance(part, TensorArray):
        new = TensorArray(part.tensor_template)
        new._frames = [_apply(function, dim_map, frame) for frame in part._frames]
        return new
    return part


def gather_nested(s: Any, *, indices: Tensor, dim_map: DimMap | None = None) -> Any:
    """gather of everything that has the dim which `indices` are indices of; the rest stays."""
    axis = indices.sparse_dim
    if axis is None:
        raise ValueError(f"gather_nested: the indices {indices} have no sparse_dim")

    def pick(tensor: Tensor) -> Tensor:
        return gather(tensor, indices=indices, axis=axis) if axis in tensor.dims else tensor

    def lengths_of(lengths: Tensor) -> Tensor:
        from returnn_hydra.frontend.create import copy_to_device

        return gather(lengths, indices=copy_to_device(indices, "cpu"), axis=axis)

    new_dims = _mapped_dims(s, lengths_of, [axis])
    if dim_map is not None:
        dim_map.update(new_dims)
    return map_nested(lambda part: _apply(pick, new_dims, part), s)


def masked_select_nested(
    s: Any,
    *,
    mask: Tensor,
    mask_cpu: Tensor | None = None,
    dims: Sequence[Dim],
    out_dim: Dim | None = None,
    dim_map: DimMap | None = None,
) -> tuple[Any, Dim, DimMap]:
    """masked_select of everything that has these dims; returns the new dim and what other dims became."""
    _, new_dim = masked_select(mask, mask=mask, dims=dims, out_dim=out_dim or Dim(None, name="packed"))

    def pick(tensor: Tensor) -> Tensor:
        if not any(d in tensor.dims for d in dims):
            return tensor
        return masked_select(tensor, mask=mask, dims=dims, out_dim=new_dim)[0]

    def lengths_of(lengths: Tensor) -> Tensor:
        from returnn_hydra.frontend.create import copy_to_device

        cpu = mask_cpu if mask_cpu is not None else copy_to_device(mask, "cpu")
        return masked_select(lengths, mask=cpu, dims=dims, out_dim=new_dim)[0]

    mapping = {} if dim_map is None else dim_map
    mapping.update(_mapped_dims(s, lengths_of, list(dims)))
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
    """The opposite of masked_select_nested: entries back to where the mask holds, `backup` elsewhere."""
    reverse = {new: old for old, new in masked_select_dim_map.items()}

    def put(part: Any, before: Any) -> Any:
        if isinstance(part, Dim):
            return before if part in reverse else part
        if not isinstance(part, Tensor) or in_dim not in part.dims:
            return part
        renamed = _renamed(part, reverse)
        return masked_scatter(renamed, before, mask=mask, dims=dims, in_dim=in_dim)

    return map_nested(put, s, backup)


def mask_nested(
    s: Any,
    *,
    mask: Tensor,
    mask_cpu: Tensor | None = None,
    mask_value: Any = None,
    dim_map: DimMap | None = None,
    allow_dim_extension: bool = True,
) -> Any:
    """Everything where the mask holds, elsewhere `mask_value` (a number, or a structure like `s`)."""

    def keep(part: Any, other: Any = mask_value) -> Any:
        if not isinstance(part, Tensor) or not mask.dims_set & part.dims_set or other is None:
            return part
        return where(mask, part, other, allow_broadcast_all_sources=True)

    if isinstance(mask_value, (dict, list, tuple)):
        return map_nested(keep, s, mask_value)
    return map_nested(keep, s)


def where_nested(x: Any, y: Any, *, condition: Tensor, condition_cpu: Tensor | None = None) -> Any:
    """x where the condition holds, else y."""

    def choose(a: Any, b: Any) -> Any:
        if isinstance(a, Tensor):
            return where(condition, a, b, allow_broadcast_all_sources=True)
        if isinstance(a, Dim) and a != b:
            raise ValueError(f"where_nested: {a} and {b} differ; bring both sides to one dim first")
        return a

    return map_nested(choose, x, y)
