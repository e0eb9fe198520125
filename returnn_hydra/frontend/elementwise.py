"""Functions of single values, and of pairs of values aligned by their dims."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from returnn_hydra.frontend.ambient import behavior_at_least, get_default_float_dtype, is_float_dtype
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.tensor import Tensor, dtype_name, torch_dtype

Scalar = int | float | bool | complex | np.number
_SCALARS = (int, float, bool, complex, np.number, np.bool_)


def merged_dims(tensors: Iterable[Any], dim_order: Sequence[Dim] | None = None) -> list[Dim]:
    """The dims of an operation over these values: in the order of the first tensor that has them all, else as they
    come."""
    sources = [t for t in tensors if isinstance(t, Tensor)]
    every: list[Dim] = []
    for source in sources:
        every += [d for d in source.dims if d not in every]
    # One that has a dim twice has more.
    complete = next((list(t.dims) for t in sources if len(t.dims) > len(every)), None)
    complete = complete or next((list(t.dims) for t in sources if len(t.dims) == len(every)), every)
    if dim_order:
        ordered = [d for d in dim_order if d in complete]
        complete = ordered + [d for d in complete if d not in ordered]
    return complete


def aligned(value: Any, dims: Sequence[Dim]) -> Any:
    """Raw values of a tensor with the axes of `dims` (size 1 where missing); scalars stay what they are."""
    if isinstance(value, Tensor):
        return value.raw_tensor if not value.dims else value.copy_compatible_to_dims_raw(dims)
    return value


def result_like(
    name: str, raw: torch.Tensor, dims: Sequence[Dim], sources: Iterable[Any], sparse: bool = True
) -> Tensor:
    """Wrap the result of an operation; feature, sparse and time dims come from the first source that has them."""
    tensors = [t for t in sources if isinstance(t, Tensor)]

    def first(attribute: str) -> Any:
        found = (getattr(t, attribute) for t in tensors)
        return next((d for d in found if d is not None and (attribute == "sparse_dim" or d in dims)), None)

    out = Tensor(
        name,
        dims=dims,
        dtype=dtype_name(raw),
        sparse_dim=first("sparse_dim") if sparse and raw.dtype != torch.bool else None,
        feature_dim=first("feature_dim"),
        raw_tensor=raw,
    )
    out._time_dim = first("_time_dim")
    return out


def _check_operands(what: str, *values: Any) -> None:
    for value in values:
        if not isinstance(value, (Tensor, *_SCALARS)):
            hint = "; wrap it with rf.convert_to_tensor(..., dims=...)" if isinstance(value, torch.Tensor) else ""
            raise TypeError(f"{what}: expected a Tensor or a number, got {type(value).__name__}{hint}")


def _remainder(a: Any, b: Any) -> Any:
    return torch.remainder(a, b)


_COMBINE: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "truediv": lambda a, b: a / b,
    "floordiv": lambda a, b: a // b,
    "mod": _remainder,
    "pow": lambda a, b: a**b,
    "maximum": lambda a, b: torch.maximum(*_both_tensors(a, b)),
    "minimum": lambda a, b: torch.minimum(*_both_tensors(a, b)),
    "logical_and": lambda a, b: torch.logical_and(*_both_tensors(a, b)),
    "logical_or": lambda a, b: torch.logical_or(*_both_tensors(a, b)),
    "squared_difference": lambda a, b: (a - b) ** 2,
    "logaddexp": lambda a, b: torch.logaddexp(*_both_tensors(a, b)),
}
_COMBINE_NAMES = {
    "+": "add", "-": "sub", "*": "mul", "/": "truediv", "//": "floordiv", "%": "mod", "**": "pow",
    "max": "maximum", "min": "minimum", "and": "logical_and", "or": "logical_or", "divide": "truediv",
    "logadd": "logaddexp", "log_add_exp": "logaddexp",
}  # fmt: skip
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
_COMPARE_NAMES = {
    "equal": "==", "eq": "==", "not_equal": "!=", "ne": "!=", "<>": "!=", "less": "<", "less_equal": "<=",
    "greater": ">", "greater_equal": ">=",
}  # fmt: skip


def _both_tensors(a: Any, b: Any) -> tuple[torch.Tensor, torch.Tensor]:
    if not isinstance(a, torch.Tensor):
        a = torch.as_tensor(a, dtype=_scalar_dtype(a, b), device=b.device)
    if not isinstance(b, torch.Tensor):
        b = torch.as_tensor(b, dtype=_scalar_dtype(b, a), device=a.device)
    return a, b


def _scalar_dtype(value: Any, other: torch.Tensor) -> torch.dtype:
    return torch.result_type(other, value)


def combine(
    a: Any,
    kind: str,
    b: Any,
    *,
    allow_broadcast_all_sources: bool | None = None,
    dim_order: Sequence[Dim] | None = None,
) -> Any:
    """a `kind` b with the axes aligned by their dims ("add" or "+", "maximum", "logical_and", ...).

    Raises:
        ValueError: unknown kind, or neither has all dims and `allow_broadcast_all_sources` is False.
    """
    kind = _COMBINE_NAMES.get(kind, kind)
    if kind not in _COMBINE:
        raise ValueError(f"combine: unknown kind '{kind}', known are {sorted([*_COMBINE, *_COMBINE_NAMES])}")
    _check_operands(kind, a, b)
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        raw = _COMBINE[kind](torch.as_tensor(a), torch.as_tensor(b))
        return raw.item()
    dims = _binary_dims(kind, a, b, allow_broadcast_all_sources, dim_order)
    return result_like(kind, _COMBINE[kind](aligned(a, dims), aligned(b, dims)), dims, (a, b))


def compare(
    a: Any,
    kind: str,
    b: Any,
    *,
    allow_broadcast_all_sources: bool | None = None,
    dim_order: Sequence[Dim] | None = None,
) -> Tensor:
    """a `kind` b as bool ("==" or "equal", "<", ...)."""
    kind = _COMPARE_NAMES.get(kind, kind)
    if kind not in _COMPARE:
        raise ValueError(f"compare: unknown kind '{kind}', known are {sorted([*_COMPARE, *_COMPARE_NAMES])}")
    _check_operands(kind, a, b)
    dims = _binary_dims(kind, a, b, allow_broadcast_all_sources, dim_order)
    return result_like(kind, _COMPARE[kind](aligned(a, dims), aligned(b, dims)), dims, (a, b), sparse=False)


def _binary_dims(kind: str, a: Any, b: Any, allow_broadcast: bool | None, order: Sequence[Dim] | None) -> list[Dim]:
    dims = merged_dims((a, b), order)
    if allow_broadcast is False and all(not isinstance(t, Tensor) or len(t.dims) < len(dims) for t in (a, b)):
        raise ValueError(f"{kind}: neither {a} nor {b} has all dims {dims}; pass allow_broadcast_all_sources=True")
    return dims


def combine_bc(a: Any, kind: str, b: Any, *, dim_order: Sequence[Dim] | None = None) -> Any:
    """Like combine; both may lack dims."""
    return combine(a, kind, b, allow_broadcast_all_sources=True, dim_order=dim_order)


def compare_bc(a: Any, kind: str, b: Any, *, dim_order: Sequence[Dim] | None = None) -> Tensor:
    """Like compare; both may lack dims."""
    return compare(a, kind, b, allow_broadcast_all_sources=True, dim_order=dim_order)


def add(a: Any, b: Any) -> Any:
    """a + b."""
    return combine(a, "add", b)


def sub(a: Any, b: Any) -> Any:
    """a - b."""
    return combine(a, "sub", b)


def mul(a: Any, b: Any) -> Any:
    """a * b."""
    return combine(a, "mul", b)


def true_divide(a: Any, b: Any) -> Any:
    """a / b."""
    return combine(a, "truediv", b)


def floor_divide(a: Any, b: Any) -> Any:
    """a // b."""
    return combine(a, "floordiv", b)


def ceil_divide(a: Any, b: Any) -> Any:
    """a / b rounded up, for integers."""
    return -(-a // b)


def mod(a: Any, b: Any) -> Any:
    """a % b, with the sign of b."""
    return combine(a, "mod", b)


def pow(a: Any, b: Any) -> Any:
    """a ** b."""
    return combine(a, "pow", b)


def maximum(a: Any, b: Any, *other_tensors: Any) -> Any:
    """The largest."""
    result = combine(a, "maximum", b)
    return maximum(result, *other_tensors) if other_tensors else result


def minimum(a: Any, b: Any, *other_tensors: Any) -> Any:
    """The smallest."""
    result = combine(a, "minimum", b)
    return minimum(result, *other_tensors) if other_tensors else result


def squared_difference(a: Any, b: Any) -> Any:
    """(a - b)^2."""
    return combine(a, "squared_difference", b)


def log_add_exp(a: Any, b: Any) -> Any:
    """log(exp(a) + exp(b))."""
    return combine(a, "logaddexp", b)


def equal(a: Any, b: Any) -> Tensor:
    """a == b."""
    return compare(a, "==", b)


def not_equal(a: Any, b: Any) -> Tensor:
    """a != b."""
    return compare(a, "!=", b)


def less(a: Any, b: Any) -> Tensor:
    """a < b."""
    return compare(a, "<", b)


def less_equal(a: Any, b: Any) -> Tensor:
    """a <= b."""
    return compare(a, "<=", b)


def greater(a: Any, b: Any) -> Tensor:
    """a > b."""
    return compare(a, ">", b)


def greater_equal(a: Any, b: Any) -> Tensor:
    """a >= b."""
    return compare(a, ">=", b)


def logical_and(a: Any, b: Any) -> Tensor:
    """Both."""
    return combine(a, "logical_and", b)


def logical_or(a: Any, b: Any) -> Tensor:
    """One of them."""
    return combine(a, "logical_or", b)


def logical_not(a: Tensor) -> Tensor:
    """Not."""
    return a._new(a.dims, torch.logical_not(a.raw_tensor), name="logical_not", dtype="bool")


def opt_logical_and(a: Any, b: Any) -> Any:
    """Both; Python bools stay Python bools."""
    if isinstance(a, bool):
        return b if a else False
    if isinstance(b, bool):
        return a if b else False
    return logical_and(a, b)


def opt_logical_or(a: Any, b: Any) -> Any:
    """One of them; Python bools stay Python bools."""
    if isinstance(a, bool):
        return True if a else b
    if isinstance(b, bool):
        return True if b else a
    return logical_or(a, b)


def where(cond: Any, true_: Any, false_: Any, *, allow_broadcast_all_sources: bool = False) -> Tensor:
    """`true_` where `cond` holds, else `false_`; the axes come in the order of `true_` if it has them all."""
    if isinstance(cond, (bool, np.bool_)):
        from returnn_hydra.frontend.create import convert_to_tensor

        cond = convert_to_tensor(bool(cond))
    dims = merged_dims((true_, false_, cond))
    raw_true, raw_false = aligned(true_, dims), aligned(false_, dims)
    if not isinstance(raw_true, torch.Tensor) and not isinstance(raw_false, torch.Tensor):
        is_float = isinstance(raw_true, float) or isinstance(raw_false, float)
        dtype = torch.bool if isinstance(raw_true, bool) else torch.int32
        dtype = torch_dtype(get_default_float_dtype()) if is_float else dtype
        raw_true = torch.as_tensor(raw_true, dtype=dtype, device=cond.raw_tensor.device)
    raw_true, raw_false = _both_tensors(raw_true, raw_false)
    return result_like("where", torch.where(aligned(cond, dims), raw_true, raw_false), dims, (true_, false_))


def clip_by_value(
    x: Tensor, clip_value_min: Any = None, clip_value_max: Any = None, *, allow_broadcast_all_sources: bool = False
) -> Tensor:
    """x limited to [min, max]."""
    result = x if clip_value_min is None else maximum(x, clip_value_min)
    result = result if clip_value_max is None else minimum(result, clip_value_max)
    return result


def lerp(start: Tensor, end: Tensor, weight: Any, *, allow_broadcast_all_sources: bool = False) -> Tensor:
    """start + weight * (end - start)."""
    dims = merged_dims((start, end, weight))
    raw = torch.lerp(aligned(start, dims), aligned(end, dims), aligned(weight, dims))
    return result_like("lerp", raw, dims, (start, end))


def cast(tensor: Tensor, dtype: str) -> Tensor:
    """The same values in another dtype."""
    out = tensor._new(tensor.dims, tensor.raw_tensor.to(torch_dtype(dtype)), dtype=dtype)
    if is_float_dtype(dtype) or dtype == "bool":
        out.sparse_dim = None
    return out


def keep_dtype(out: Tensor, dtype: str) -> Tensor:
    """What a module gives under autocast: from behaviour version 27 on the dtype that it had before its parameters
    were added to it or multiplied with it, before that the wider one."""
    if out.dtype == dtype or not behavior_at_least(27, "rf_module_output_keep_dtype"):
        return out
    return cast(out, dtype)


def _unary(name: str, function: Callable[[torch.Tensor], torch.Tensor], doc: str) -> Callable[[Tensor], Tensor]:
    def apply(a: Tensor) -> Tensor:
        raw = function(a.raw_tensor)
        return a._new(a.dims, raw, name=name, dtype=dtype_name(raw))

    apply.__name__ = apply.__qualname__ = name
    apply.__doc__ = doc
    return apply


_functional = torch.nn.functional
exp = _unary("exp", torch.exp, "e^a.")
expm1 = _unary("expm1", torch.expm1, "e^a - 1.")
log = _unary("log", torch.log, "Natural logarithm.")
log1p = _unary("log1p", torch.log1p, "log(1 + a).")
sqrt = _unary("sqrt", torch.sqrt, "Square root.")
rsqrt = _unary("rsqrt", torch.rsqrt, "1 / sqrt(a).")
reciprocal = _unary("reciprocal", torch.reciprocal, "1 / a.")
square = _unary("square", torch.square, "a^2.")
abs = _unary("abs", torch.abs, "Absolute value.")
neg = _unary("neg", torch.neg, "-a.")
sin = _unary("sin", torch.sin, "Sine.")
cos = _unary("cos", torch.cos, "Cosine.")
tanh = _unary("tanh", torch.tanh, "Hyperbolic tangent.")
sigmoid = _unary("sigmoid", torch.sigmoid, "1 / (1 + e^-a).")
log_sigmoid = _unary("log_sigmoid", _functional.logsigmoid, "log(sigmoid(a)).")
relu = _unary("relu", torch.relu, "max(a, 0).")
gelu = _unary("gelu", _functional.gelu, "a times the normal distribution function of a.")
silu = _unary("silu", _functional.silu, "a sigmoid(a).")
elu = _unary("elu", _functional.elu, "a, or e^a - 1 below 0.")
selu = _unary("selu", _functional.selu, "The self-normalising ELU.")
ceil = _unary("ceil", torch.ceil, "Rounded up.")
floor = _unary("floor", torch.floor, "Rounded down.")
round = _unary("round", torch.round, "Rounded to the nearest; halves to even.")
softplus = _unary("softplus", _functional.softplus, "log(1 + e^a).")
is_finite = _unary("is_finite", torch.isfinite, "Neither infinite nor nan.")
is_infinite = _unary("is_infinite", torch.isinf, "Infinite.")
is_neg_infinite = _unary("is_neg_infinite", torch.isneginf, "-infinity.")
relu_square = _unary("relu_square", lambda raw: torch.relu(raw) ** 2, "max(a, 0)^2.")
swish = silu


def identity(x: Any) -> Any:
    """The argument."""
    return x


def safe_log(a: Tensor, *, eps: float | None = None) -> Tensor:
    """log(max(a, eps)); default eps: the smallest normal number of the dtype (1.2e-38 for float32)."""
    if eps is None:
        eps = {"float16": 6e-08, "bfloat16": 9.1835e-41, "float32": 1.4013e-45, "float64": 5e-324}.get(a.dtype, 1e-20)
    return log(maximum(a, eps))


def gating(
    x: Tensor,
    *,
    axis: Dim | None = None,
    gate_func: Callable[[Tensor], Tensor] = sigmoid,
    act_func: Callable[[Tensor], Tensor] = identity,
    out_dim: Dim | None = None,
) -> tuple[Tensor, Dim]:
    """Halves the features: act_func(first half) * gate_func(second half)."""
    from returnn_hydra.frontend.arrays import split

    axis = axis or x.feature_dim
    if axis is None:
        raise ValueError(f"gating: {x} has no feature dim; pass axis")
    if out_dim is None:
        out_dim = axis.div_left(2)
    values, gates = split(x, axis=axis, out_dims=[out_dim, out_dim])
    return act_func(values) * gate_func(gates), out_dim


def cumsum(source: Tensor, *, spatial_dim: Dim) -> Tensor:
    """Running sum along a dim."""
    number = source.get_axis_from_description(spatial_dim)
    return source._new(source.dims, source.raw_tensor.cumsum(number, dtype=source.raw_tensor.dtype), name="cumsum")


def softmax(a: Tensor, *, axis: Dim, use_mask: bool = True) -> Tensor:
    """Softmax over a dim; padding of a dynamic dim gets no probability."""
    return _softmax(torch.softmax, "softmax", a, axis, use_mask)


def log_softmax(a: Tensor, *, axis: Dim, use_mask: bool = True) -> Tensor:
    """log(softmax) over a dim."""
    return _softmax(torch.log_softmax, "log_softmax", a, axis, use_mask)


def _softmax(function: Any, name: str, a: Tensor, axis: Dim, use_mask: bool) -> Tensor:
    # Of a dim twice, RETURNN takes the first here.
    number = a.dims.index(axis) if axis in a.dims else a.get_axis_from_description(axis)
    axis = a.dims[number]
    source = a
    if use_mask and axis.need_masking():
        source = where(axis.get_mask(device=a.device), a, float("-inf"), allow_broadcast_all_sources=True)
        number = source.get_axis_from_description(axis)
    out = source._new(source.dims, function(source.raw_tensor, dim=number), name=name)
    out.feature_dim = a.feature_dim
    return out
