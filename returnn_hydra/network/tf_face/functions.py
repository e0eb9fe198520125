"""The functions of `tf`, by their names below it (`nn.relu`)."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from returnn_hydra.network.activations import ELEMENTWISE
from returnn_hydra.network.tf_face.tensor import as_sizes, as_tensor, tf_tensor


def _pair(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def call(x: Any, y: Any, name: str | None = None) -> Tensor:
        a = as_tensor(x, y if isinstance(y, Tensor) else None)
        return function(a, as_tensor(y, a))

    return call


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def call(x: Any = None, name: str | None = None, **named: Any) -> Tensor:
        value = x if x is not None else next(iter(named.values()))
        return function(as_tensor(value))

    return call


def _reduction(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(
        input_tensor: Any,
        axis: Any = None,
        keepdims: bool | None = None,
        name: str | None = None,
        keep_dims: bool | None = None,
    ) -> Tensor:
        x = as_tensor(input_tensor)
        dims = list(range(x.dim())) if axis is None else as_sizes(axis)
        return function(x, dims, bool(keepdims or keep_dims)) if dims else x

    return call


def _over_dims(one: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor, list[int], bool], Tensor]:
    def call(x: Tensor, dims: list[int], keep: bool) -> Tensor:
        places = sorted({dim % x.dim() for dim in dims}, reverse=True)
        for dim in places:
            x = one(x, dim)
        if keep:
            for dim in reversed(places):
                x = x.unsqueeze(dim)
        return x

    return call


def _mean(x: Tensor, dims: list[int], keep: bool) -> Tensor:
    return (x if x.is_floating_point() else x.float()).mean(dims, keepdim=keep)


def where(condition: Any, x: Any = None, y: Any = None, name: str | None = None) -> Tensor:
    """Select; a condition of one dimension selects rows of larger tensors (TensorFlow 1). Without x, y: positions."""
    test = as_tensor(condition)
    if x is None:
        return tf_tensor(torch.nonzero(test))
    a = as_tensor(x, y if isinstance(y, Tensor) else None)
    b = as_tensor(y, a)
    a = as_tensor(a, b)
    if test.dim() == 1 and a.dim() > 1:
        test = test.reshape(-1, *[1] * (a.dim() - 1))
    device = a.device if a.dim() else b.device
    dtype = torch.promote_types(a.dtype, b.dtype)
    return tf_tensor(torch.where(test.to(device), a.to(dtype), b.to(dtype)))


def cast(x: Any, dtype: torch.dtype, name: str | None = None) -> Tensor:
    return as_tensor(x).to(dtype)


def shape(input: Any, name: str | None = None, out_type: torch.dtype = torch.int32) -> Tensor:
    return tf_tensor(torch.tensor(list(as_tensor(input).size()), dtype=out_type))


def reshape(tensor: Any, shape: Any, name: str | None = None) -> Tensor:
    return as_tensor(tensor).reshape(as_sizes(shape))


def transpose(a: Any, perm: Any = None, name: str | None = None) -> Tensor:
    x = as_tensor(a)
    return x.permute(as_sizes(perm) if perm is not None else list(range(x.dim()))[::-1])


def expand_dims(input: Any, axis: int = -1, name: str | None = None, dim: int | None = None) -> Tensor:
    return as_tensor(input).unsqueeze(int(dim if dim is not None else axis))


def squeeze(input: Any, axis: Any = None, name: str | None = None) -> Tensor:
    x = as_tensor(input)
    return x.squeeze() if axis is None else x.squeeze(tuple(as_sizes(axis)))


def concat(values: Any, axis: int, name: str | None = None) -> Tensor:
    return tf_tensor(torch.cat([as_tensor(value) for value in values], int(axis)))


def stack(values: Any, axis: int = 0, name: str | None = None) -> Tensor:
    return tf_tensor(torch.stack([as_tensor(value) for value in values], int(axis)))


def unstack(value: Any, num: int | None = None, axis: int = 0, name: str | None = None) -> list[Tensor]:
    return list(torch.unbind(as_tensor(value), int(axis)))


def split(value: Any, num_or_size_splits: Any, axis: int = 0, name: str | None = None) -> list[Tensor]:
    x = as_tensor(value)
    if isinstance(num_or_size_splits, int):
        return list(x.split(x.shape[axis] // num_or_size_splits, axis))
    return list(x.split(as_sizes(num_or_size_splits), axis))


def tile(input: Any, multiples: Any, name: str | None = None) -> Tensor:
    return as_tensor(input).repeat(as_sizes(multiples))


def pad(
    tensor: Any, paddings: Any, mode: str = "CONSTANT", constant_values: float = 0, name: str | None = None
) -> Tensor:
    x = as_tensor(tensor)
    flat = [size for pair in reversed([as_sizes(pair) for pair in paddings]) for size in pair]
    return F.pad(x, flat, value=constant_values) if mode.upper() == "CONSTANT" else F.pad(x, flat, mode.lower())


def range_(
    start: Any, limit: Any = None, delta: Any = 1, dtype: torch.dtype | None = None, name: str | None = None
) -> Tensor:
    first, last = (0, start) if limit is None else (start, limit)
    numbers = [part.item() if isinstance(part, Tensor) else part for part in (first, last, delta)]
    if dtype is None:
        dtype = torch.float32 if any(isinstance(part, float) for part in numbers) else torch.int32
    return tf_tensor(torch.arange(*numbers, dtype=dtype, device=_device(start, limit)))


def _device(*values: Any) -> torch.device | None:
    return next((value.device for value in values if isinstance(value, Tensor) and value.dim()), None)


def random_uniform(
    shape: Any = (),
    minval: Any = 0,
    maxval: Any = None,
    dtype: torch.dtype = torch.float32,
    seed: Any = None,
    name: Any = None,
) -> Tensor:
    """Uniform in [minval, maxval); bounds may be tensors."""
    sizes = as_sizes(shape)
    low = as_tensor(minval)
    high = as_tensor(1.0 if maxval is None else maxval)
    values = torch.rand(sizes, device=_device(minval, maxval))
    if dtype.is_floating_point:
        return tf_tensor((low + values * (high - low)).to(dtype))
    return tf_tensor((low + torch.floor(values.double() * (high - low))).to(dtype))


def random_normal(
    shape: Any,
    mean: Any = 0.0,
    stddev: Any = 1.0,
    dtype: torch.dtype = torch.float32,
    seed: Any = None,
    name: Any = None,
) -> Tensor:
    return tf_tensor(torch.randn(as_sizes(shape), dtype=dtype) * stddev + mean)


def top_k(input: Any, k: Any = 1, sorted: bool = True, name: str | None = None) -> tuple[Tensor, Tensor]:
    x = as_tensor(input)
    values, indices = torch.topk(x, min(int(k), x.shape[-1]), -1, sorted=sorted)
    return values, indices.to(torch.int32)


def while_loop(cond: Callable[..., Any], body: Callable[..., Any], loop_vars: Any, **_: Any) -> Any:
    values = [as_tensor(value) if isinstance(value, (int, float)) else value for value in loop_vars]
    while bool(cond(*values)):
        values = body(*values)
        values = list(values) if isinstance(values, (tuple, list)) else [values]
    return tuple(values) if len(values) > 1 else values[0]


def cond(
    pred: Any,
    true_fn: Callable[[], Any] | None = None,
    false_fn: Callable[[], Any] | None = None,
    name: str | None = None,
    fn1: Callable[[], Any] | None = None,
    fn2: Callable[[], Any] | None = None,
) -> Any:
    chosen = (true_fn or fn1) if bool(pred) else (false_fn or fn2)
    assert chosen is not None
    return chosen()


def gather(params: Any, indices: Any, axis: int = 0, batch_dims: int = 0, name: str | None = None) -> Tensor:
    x, index = as_tensor(params), as_tensor(indices).long()
    if batch_dims:
        first = torch.arange(x.shape[0], device=x.device).reshape(-1, *[1] * (index.dim() - 1))
        return x[first, index]
    flat = x.index_select(axis, index.reshape(-1).to(x.device))
    axis = axis % x.dim()
    return flat.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def gather_nd(params: Any, indices: Any, name: str | None = None) -> Tensor:
    x, index = as_tensor(params), as_tensor(indices).long()
    return x[tuple(index.unbind(-1))]


def clip_by_value(t: Any, clip_value_min: Any, clip_value_max: Any, name: str | None = None) -> Tensor:
    x = as_tensor(t)
    return torch.minimum(torch.maximum(x, as_tensor(clip_value_min, x)), as_tensor(clip_value_max, x))


def l2_normalize(x: Any, axis: Any = None, epsilon: float = 1e-12, name: str | None = None, dim: Any = None) -> Tensor:
    value = as_tensor(x)
    dims = as_sizes(axis if axis is not None else dim) if axis is not None or dim is not None else None
    square = value.square().sum(dims, keepdim=True) if dims else value.square().sum()
    return value * torch.rsqrt(square.clamp(min=epsilon))


def sequence_mask(lengths: Any, maxlen: Any = None, dtype: torch.dtype = torch.bool, name: str | None = None) -> Tensor:
    sizes = as_tensor(lengths)
    longest = int(sizes.max()) if maxlen is None else int(maxlen)
    return (torch.arange(longest, device=sizes.device) < sizes[..., None]).to(dtype)


def one_hot(
    indices: Any,
    depth: Any,
    on_value: float = 1.0,
    off_value: float = 0.0,
    axis: int = -1,
    dtype: torch.dtype = torch.float32,
    name: str | None = None,
) -> Tensor:
    index = as_tensor(indices).long()
    classes = torch.arange(int(depth), device=index.device)
    hot = tf_tensor(torch.where(index[..., None] == classes, on_value, off_value).to(dtype))
    return hot if axis in (-1, index.dim()) else hot.movedim(-1, axis)


def matmul(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False, name: str | None = None) -> Tensor:
    x, y = as_tensor(a), as_tensor(b)
    return torch.matmul(x.mT if transpose_a else x, y.mT if transpose_b else y)


def dropout(
    x: Any, keep_prob: Any = None, noise_shape: Any = None, seed: Any = None, rate: Any = None, name: Any = None
) -> Tensor:
    value = as_tensor(x)
    drop = float(rate) if rate is not None else 1.0 - float(keep_prob)
    sizes = list(value.size()) if noise_shape is None else as_sizes(noise_shape)
    sizes = [actual if size == -1 else size for size, actual in zip(sizes, value.size(), strict=True)]
    return value * torch.empty(sizes, device=value.device).bernoulli_(1.0 - drop) / (1.0 - drop)


def argmax(
    input: Any,
    axis: int | None = None,
    output_type: torch.dtype = torch.int64,
    name: Any = None,
    dimension: int | None = None,
) -> Tensor:
    return as_tensor(input).argmax(axis if axis is not None else (dimension or 0)).to(output_type)


def argmin(input: Any, axis: int | None = None, output_type: torch.dtype = torch.int64, name: Any = None) -> Tensor:
    return as_tensor(input).argmin(axis or 0).to(output_type)


def softmax(logits: Any, axis: int = -1, name: str | None = None, dim: int | None = None) -> Tensor:
    return torch.softmax(as_tensor(logits), axis if dim is None else dim)


def log_softmax(logits: Any, axis: int = -1, name: str | None = None, dim: int | None = None) -> Tensor:
    return torch.log_softmax(as_tensor(logits), axis if dim is None else dim)


def fill(dims: Any, value: Any, name: str | None = None) -> Tensor:
    return as_tensor(value).expand(as_sizes(dims)).clone()


def zeros(shape: Any, dtype: torch.dtype = torch.float32, name: str | None = None) -> Tensor:
    return tf_tensor(torch.zeros(as_sizes(shape), dtype=dtype))


def ones(shape: Any, dtype: torch.dtype = torch.float32, name: str | None = None) -> Tensor:
    return tf_tensor(torch.ones(as_sizes(shape), dtype=dtype))


def zeros_like(tensor: Any, dtype: torch.dtype | None = None, name: str | None = None) -> Tensor:
    return torch.zeros_like(as_tensor(tensor), dtype=dtype)


def ones_like(tensor: Any, dtype: torch.dtype | None = None, name: str | None = None) -> Tensor:
    return torch.ones_like(as_tensor(tensor), dtype=dtype)


def constant(value: Any, dtype: torch.dtype | None = None, shape: Any = None, name: str | None = None) -> Tensor:
    result = as_tensor(value, dtype=dtype)
    return result if shape is None else result.expand(as_sizes(shape)).clone()


def convert_to_tensor(value: Any, dtype: torch.dtype | None = None, name: str | None = None) -> Tensor:
    return as_tensor(value, dtype=dtype)


def identity(input: Any, name: str | None = None) -> Any:
    return input


def stop_gradient(input: Any, name: str | None = None) -> Tensor:
    return as_tensor(input).detach()


def reverse(tensor: Any, axis: Any, name: str | None = None) -> Tensor:
    return as_tensor(tensor).flip(as_sizes(axis))


def cumsum(x: Any, axis: int = 0, exclusive: bool = False, reverse: bool = False, name: str | None = None) -> Tensor:
    value = as_tensor(x)
    total = value.flip(axis).cumsum(axis).flip(axis) if reverse else value.cumsum(axis)
    return total - value if exclusive else total


def norm(
    tensor: Any, ord: Any = "euclidean", axis: Any = None, keepdims: bool = False, name: str | None = None
) -> Tensor:
    p = 2 if ord == "euclidean" else ord
    return torch.linalg.vector_norm(as_tensor(tensor), p, None if axis is None else as_sizes(axis), keepdims)


def rank(input: Any, name: str | None = None) -> int:
    return as_tensor(input).dim()


def size(input: Any, name: str | None = None, out_type: torch.dtype = torch.int32) -> Tensor:
    return tf_tensor(torch.tensor(as_tensor(input).numel(), dtype=out_type))


def no_op(*_: Any, **__: Any) -> None:
    """Printing, summaries and assertions of the graph."""


def add_n(inputs: Any, name: str | None = None) -> Tensor:
    return sum((as_tensor(part) for part in inputs[1:]), as_tensor(inputs[0]))


def sigmoid_cross_entropy_with_logits(labels: Any = None, logits: Any = None, name: str | None = None) -> Tensor:
    return F.binary_cross_entropy_with_logits(as_tensor(logits), as_tensor(labels), reduction="none")


def sparse_softmax_cross_entropy_with_logits(labels: Any = None, logits: Any = None, name: str | None = None) -> Tensor:
    log_p = torch.log_softmax(as_tensor(logits), -1)
    return -log_p.gather(-1, as_tensor(labels).long()[..., None]).squeeze(-1)


_PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "divide": torch.true_divide,
    "truediv": torch.true_divide,
    "div": torch.true_divide,
    "floordiv": torch.floor_divide,
    "mod": torch.remainder,
    "floormod": torch.remainder,
    "pow": torch.pow,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "squared_difference": lambda a, b: (a - b).square(),
    "atan2": torch.atan2,
    "divide_no_nan": lambda a, b: torch.where(b == 0, torch.zeros_like(a / b), a / b),
}
_MATH: dict[str, Any] = {
    **{name: _unary(function) for name, function in ELEMENTWISE.items() if not name.startswith("safe")},
    **{name: _pair(function) for name, function in _PAIRS.items()},
    "is_nan": _unary(torch.isnan),
    "is_inf": _unary(torch.isinf),
    "is_finite": _unary(torch.isfinite),
    "tan": _unary(torch.tan),
    "ceil": _unary(torch.ceil),
    "real": _unary(torch.real),
    "imag": _unary(torch.imag),
    "lgamma": _unary(torch.lgamma),
    "expm1": _unary(torch.expm1),
    "reduce_sum": _reduction(lambda x, dims, keep: x.sum(dims, keepdim=keep)),
    "reduce_mean": _reduction(_mean),
    "reduce_max": _reduction(lambda x, dims, keep: x.amax(dims, keepdim=keep)),
    "reduce_min": _reduction(lambda x, dims, keep: x.amin(dims, keepdim=keep)),
    "reduce_prod": _reduction(_over_dims(lambda x, dim: x.prod(dim))),
    "reduce_any": _reduction(_over_dims(lambda x, dim: x.any(dim))),
    "reduce_all": _reduction(_over_dims(lambda x, dim: x.all(dim))),
    "reduce_logsumexp": _reduction(lambda x, dims, keep: torch.logsumexp(x, dims, keepdim=keep)),
    "reduce_variance": _reduction(lambda x, dims, keep: x.var(dims, unbiased=False, keepdim=keep)),
    "reduce_std": _reduction(lambda x, dims, keep: x.std(dims, unbiased=False, keepdim=keep)),
    "argmax": argmax,
    "argmin": argmin,
    "l2_normalize": l2_normalize,
    "cumsum": cumsum,
    "top_k": top_k,
    "add_n": add_n,
}
_NN: dict[str, Any] = {
    **{
        name: _unary(ELEMENTWISE[name])
        for name in (
            "relu",
            "relu6",
            "elu",
            "selu",
            "gelu",
            "swish",
            "silu",
            "tanh",
            "sigmoid",
            "softplus",
            "softsign",
            "leaky_relu",
        )
    },
    "softmax": softmax,
    "log_softmax": log_softmax,
    "top_k": top_k,
    "dropout": dropout,
    "l2_normalize": l2_normalize,
    "embedding_lookup": gather,
    "sigmoid_cross_entropy_with_logits": sigmoid_cross_entropy_with_logits,
    "sparse_softmax_cross_entropy_with_logits": sparse_softmax_cross_entropy_with_logits,
}
_PLAIN: dict[str, Any] = {
    "where": where,
    "cast": cast,
    "shape": shape,
    "reshape": reshape,
    "transpose": transpose,
    "expand_dims": expand_dims,
    "squeeze": squeeze,
    "concat": concat,
    "stack": stack,
    "unstack": unstack,
    "split": split,
    "tile": tile,
    "pad": pad,
    "range": range_,
    "random_uniform": random_uniform,
    "random_normal": random_normal,
    "while_loop": while_loop,
    "cond": cond,
    "gather": gather,
    "gather_nd": gather_nd,
    "clip_by_value": clip_by_value,
    "sequence_mask": sequence_mask,
    "one_hot": one_hot,
    "matmul": matmul,
    "fill": fill,
    "zeros": zeros,
    "ones": ones,
    "zeros_like": zeros_like,
    "ones_like": ones_like,
    "constant": constant,
    "convert_to_tensor": convert_to_tensor,
    "identity": identity,
    "stop_gradient": stop_gradient,
    "reverse": reverse,
    "norm": norm,
    "rank": rank,
    "size": size,
    "no_op": no_op,
    "to_int32": lambda x, name=None: cast(x, torch.int32),
    "to_float": lambda x, name=None: cast(x, torch.float32),
    "log_sigmoid": _unary(F.logsigmoid),
}
TYPES: dict[str, torch.dtype] = {
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "bool": torch.bool,
    "complex64": torch.complex64,
}
_TYPE_NAMES = ("dtype", "out_type", "output_type")


def _with_type_names(function: Any) -> Any:
    """Types may be given as texts, too ("float32")."""
    names = list(inspect.signature(function).parameters) if isinstance(function, types.FunctionType) else []
    places = {name: names.index(name) for name in _TYPE_NAMES if name in names}
    if not places:
        return function

    def call(*given: Any, **named: Any) -> Any:
        values = [TYPES.get(v, v) if i in places.values() and isinstance(v, str) else v for i, v in enumerate(given)]
        named |= {name: TYPES.get(v, v) for name, v in named.items() if name in places and isinstance(v, str)}
        return function(*values, **named)

    return call


RANDOM: dict[str, Any] = {"uniform": random_uniform, "normal": random_normal}
TABLE: dict[str, Any] = {
    **{name: _with_type_names(function) for name, function in {**_MATH, **_NN, **_PLAIN}.items()},
    **TYPES,
}
MATH, NN = {**_MATH, "softmax": softmax, "log_softmax": log_softmax, "log_sigmoid": _unary(F.logsigmoid)}, _NN
PI = math.pi
