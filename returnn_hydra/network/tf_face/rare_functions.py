"""Functions of `tf` that few configs call, by their names below it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.tf_face.tensor import as_sizes, as_tensor, tf_tensor


def scatter_nd(indices: Any, updates: Any, shape: Any, name: str | None = None) -> Tensor:
    """Zeros of a shape, with the updates added at the indices (..., number of indexed axes)."""
    values = as_tensor(updates)
    return tensor_scatter_nd_add(values.new_zeros(as_sizes(shape)), indices, values)


def tensor_scatter_nd_add(tensor: Any, indices: Any, updates: Any, name: str | None = None) -> Tensor:
    x, places = as_tensor(tensor), as_tensor(indices).long()
    return x.index_put(tuple(places.unbind(-1)), as_tensor(updates, x).to(x.dtype), accumulate=True)


def tensor_scatter_nd_update(tensor: Any, indices: Any, updates: Any, name: str | None = None) -> Tensor:
    x, places = as_tensor(tensor), as_tensor(indices).long()
    return x.index_put(tuple(places.unbind(-1)), as_tensor(updates, x).to(x.dtype))


def einsum(equation: str, *inputs: Any, name: str | None = None) -> Tensor:
    return torch.einsum(equation, *[as_tensor(part) for part in inputs])


def tensordot(a: Any, b: Any, axes: Any, name: str | None = None) -> Tensor:
    if isinstance(axes, int):
        return torch.tensordot(as_tensor(a), as_tensor(b), dims=axes)
    return torch.tensordot(as_tensor(a), as_tensor(b), dims=[as_sizes(part) for part in axes])


def reverse_sequence(
    input: Any,
    seq_lengths: Any,
    seq_axis: int | None = None,
    batch_axis: int | None = None,
    name: str | None = None,
    seq_dim: int | None = None,
    batch_dim: int | None = None,
) -> Tensor:
    """Every sequence backwards, padding in its place."""
    time = seq_axis if seq_axis is not None else (seq_dim or 0)
    batch = batch_axis if batch_axis is not None else (batch_dim or 0)
    x = as_tensor(input).movedim((batch, time), (0, 1))
    lengths = as_tensor(seq_lengths).long().to(x.device)[:, None]
    places = torch.arange(x.shape[1], device=x.device)
    places = torch.where(places < lengths, lengths - 1 - places, places)
    return x[torch.arange(x.shape[0], device=x.device)[:, None], places].movedim((0, 1), (batch, time))


def sort(values: Any, axis: int = -1, direction: str = "ASCENDING", name: str | None = None) -> Tensor:
    return torch.sort(as_tensor(values), axis, descending=direction.upper() == "DESCENDING").values


def argsort(
    values: Any, axis: int = -1, direction: str = "ASCENDING", stable: bool = False, name: str | None = None
) -> Tensor:
    order = torch.argsort(as_tensor(values), dim=axis, descending=direction.upper() == "DESCENDING", stable=True)
    return order.to(torch.int32)


def cumprod(x: Any, axis: int = 0, name: str | None = None) -> Tensor:
    return as_tensor(x).cumprod(axis)


def linspace(start: Any, stop: Any, num: Any, name: str | None = None) -> Tensor:
    return tf_tensor(torch.linspace(float(start), float(stop), int(num)))


def boolean_mask(tensor: Any, mask: Any, name: str | None = None, axis: int | None = None) -> Tensor:
    x, keep = as_tensor(tensor), as_tensor(mask).bool()
    if axis in (None, 0):
        return x[keep]
    return x.index_select(axis, torch.nonzero(keep).reshape(-1).to(x.device))


def roll(input: Any, shift: Any, axis: Any, name: str | None = None) -> Tensor:
    return as_tensor(input).roll(as_sizes(shift), as_sizes(axis))


def slice_(input_: Any, begin: Any, size: Any, name: str | None = None) -> Tensor:
    x = as_tensor(input_)
    for axis, (first, count) in enumerate(zip(as_sizes(begin), as_sizes(size), strict=True)):
        x = x.narrow(axis, first, x.shape[axis] - first if count == -1 else count)
    return x


def broadcast_to(input: Any, shape: Any, name: str | None = None) -> Tensor:
    return as_tensor(input).expand(as_sizes(shape))


def repeat(input: Any, repeats: Any, axis: int | None = None, name: str | None = None) -> Tensor:
    x = as_tensor(input)
    counts = int(repeats) if isinstance(repeats, int) else as_tensor(repeats).long()
    return torch.repeat_interleave(x, counts, axis)


def map_fn(
    fn: Callable[..., Any], elems: Any, dtype: torch.dtype | None = None, fn_output_signature: Any = None, **_: Any
) -> Tensor:
    """A function of every entry of the first axis (of several tensors together)."""
    rows = zip(*elems, strict=True) if isinstance(elems, (list, tuple)) else as_tensor(elems)
    found = [as_tensor(fn(row)) for row in rows]
    kind = dtype or fn_output_signature
    stacked = tf_tensor(torch.stack(found))
    return stacked if kind is None else stacked.to(kind)


def foldl(fn: Callable[..., Any], elems: Any, initializer: Any = None, **_: Any) -> Any:
    rows = list(as_tensor(elems))
    total = initializer if initializer is not None else rows.pop(0)
    for row in rows:
        total = fn(total, row)
    return total


def case(pred_fn_pairs: Any, default: Callable[[], Any] | None = None, **_: Any) -> Any:
    """What belongs to the first condition that is true."""
    pairs = pred_fn_pairs.items() if isinstance(pred_fn_pairs, dict) else pred_fn_pairs
    for test, function in pairs:
        if bool(test):
            return function()
    if default is None:
        raise ValueError("tf.case: no condition is true, and there is no default")
    return default()


def random_shuffle(value: Any, seed: Any = None, name: str | None = None) -> Tensor:
    x = as_tensor(value)
    return x[torch.randperm(x.shape[0], device=x.device)]


def truncated_normal(
    shape: Any, mean: float = 0.0, stddev: float = 1.0, dtype: torch.dtype = torch.float32, seed: Any = None, **_: Any
) -> Tensor:
    """Normal, nothing beyond two standard deviations."""
    values = torch.empty(as_sizes(shape), dtype=dtype)
    return tf_tensor(torch.nn.init.trunc_normal_(values, mean, stddev, mean - 2 * stddev, mean + 2 * stddev))


def searchsorted(sorted_sequence: Any, values: Any, side: str = "left", name: str | None = None) -> Tensor:
    keys, wanted = as_tensor(sorted_sequence).contiguous(), as_tensor(values).contiguous()
    return torch.searchsorted(keys, wanted, right=side == "right").to(torch.int32)


def band_part(input: Any, num_lower: Any, num_upper: Any, name: str | None = None) -> Tensor:
    """The diagonals from `num_lower` below to `num_upper` above the main one; -1: all."""
    x = as_tensor(input)
    below, above = int(num_lower), int(num_upper)
    x = x if below < 0 else torch.triu(x, -below)
    return x if above < 0 else torch.tril(x, above)


def invert_permutation(x: Any, name: str | None = None) -> Tensor:
    return torch.argsort(as_tensor(x)).to(as_tensor(x).dtype)


def eye(
    num_rows: Any, num_columns: Any = None, batch_shape: Any = None, dtype: torch.dtype = torch.float32, **_: Any
) -> Tensor:
    square = torch.eye(int(num_rows), int(num_rows if num_columns is None else num_columns), dtype=dtype)
    return tf_tensor(square if batch_shape is None else square.expand(*as_sizes(batch_shape), *square.shape))


def meshgrid(*args: Any, indexing: str = "xy", **_: Any) -> list[Tensor]:
    return list(torch.meshgrid(*[as_tensor(part) for part in args], indexing=indexing))


def moments(
    x: Any,
    axes: Any,
    shift: Any = None,
    name: str | None = None,
    keep_dims: bool | None = None,
    keepdims: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance."""
    value, keep = as_tensor(x), bool(keepdims or keep_dims)
    dims = as_sizes(axes)
    return value.mean(dims, keepdim=keep), value.var(dims, unbiased=False, keepdim=keep)


def bias_add(value: Any, bias: Any, data_format: str | None = None, name: str | None = None) -> Tensor:
    return as_tensor(value) + as_tensor(bias)


def softmax_cross_entropy_with_logits(
    labels: Any = None, logits: Any = None, axis: int | None = None, name: str | None = None, dim: int | None = None
) -> Tensor:
    over = axis if axis is not None else (-1 if dim is None else dim)
    return -(as_tensor(labels) * torch.log_softmax(as_tensor(logits), over)).sum(over)


def multiply_no_nan(x: Any, y: Any, name: str | None = None) -> Tensor:
    a, b = as_tensor(x), as_tensor(y)
    return torch.where(b == 0, torch.zeros_like(a * b), a * b)


def cumulative_logsumexp(x: Any, axis: int = 0, name: str | None = None) -> Tensor:
    return torch.logcumsumexp(as_tensor(x), axis)


def first_of(value: Any = None, *_: Any, **__: Any) -> Any:
    """Checks and bounds of shapes: sizes are known here."""
    return value


def nothing(*_: Any, **__: Any) -> None:
    """Printing, summaries, seeds."""


PLAIN: dict[str, Any] = {
    "scatter_nd": scatter_nd,
    "tensor_scatter_nd_add": tensor_scatter_nd_add,
    "tensor_scatter_nd_update": tensor_scatter_nd_update,
    "einsum": einsum,
    "tensordot": tensordot,
    "reverse_sequence": reverse_sequence,
    "sort": sort,
    "argsort": argsort,
    "cumprod": cumprod,
    "linspace": linspace,
    "boolean_mask": boolean_mask,
    "roll": roll,
    "slice": slice_,
    "broadcast_to": broadcast_to,
    "repeat": repeat,
    "map_fn": map_fn,
    "foldl": foldl,
    "case": case,
    "random_shuffle": random_shuffle,
    "truncated_normal": truncated_normal,
    "searchsorted": searchsorted,
    "matrix_band_part": band_part,
    "invert_permutation": invert_permutation,
    "eye": eye,
    "meshgrid": meshgrid,
    "to_int64": lambda x, name=None: as_tensor(x).to(torch.int64),
    "tuple": lambda tensors, **_: list(tensors),
    "group": nothing,
    "check_numerics": first_of,
    "ensure_shape": first_of,
    "is_tensor": lambda x: isinstance(x, Tensor),
    "newaxis": None,
    "print": nothing,
}
MATH: dict[str, Any] = {
    "multiply_no_nan": multiply_no_nan,
    "cumulative_logsumexp": cumulative_logsumexp,
    "cumprod": cumprod,
    "invert_permutation": invert_permutation,
}
NN: dict[str, Any] = {
    "moments": moments,
    "bias_add": bias_add,
    "softmax_cross_entropy_with_logits": softmax_cross_entropy_with_logits,
    "softmax_cross_entropy_with_logits_v2": softmax_cross_entropy_with_logits,
}
RANDOM: dict[str, Any] = {"shuffle": random_shuffle, "truncated_normal": truncated_normal, "set_seed": nothing}
ASSERTIONS = (
    "Assert assert_equal assert_greater assert_greater_equal assert_less assert_less_equal assert_none_equal "
    "assert_rank assert_positive assert_non_negative"
).split()
SUMMARIES = ("scalar", "image", "histogram", "text", "tensor_summary")
