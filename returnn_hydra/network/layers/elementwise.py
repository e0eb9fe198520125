"""Layers that work position by position."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from returnn_hydra.network.activations import ELEMENTWISE, activate
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.errors import nearest
from returnn_hydra.network.eval_layer import evaluate_sources
from returnn_hydra.network.named_tensor import NamedTensor, broadcast
from returnn_hydra.network.registry import register_layer

TORCH_TYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


@register_layer("copy", "identity", "source", framewise=True)
def copy(call: LayerCall, *, extra_deps: Any = None) -> NamedTensor:
    """The (concatenated) input."""
    del extra_deps
    return call.x


@register_layer("dropout", framewise=True)
def dropout(call: LayerCall, *, extra_deps: Any = None) -> NamedTensor:
    """The input after dropout (the option of every layer)."""
    del extra_deps
    return call.x


@register_layer("scaled_grad", framewise=True)
def scaled_grad(
    call: LayerCall, *, scale: float, shift: None = None, scale_shift_by_sum_over_axis: None = None
) -> NamedTensor:
    """The input; its gradient is multiplied by `scale` (0: stops)."""
    if shift is not None or scale_shift_by_sum_over_axis is not None:
        raise call.error("options 'shift' and 'scale_shift_by_sum_over_axis' are not supported; nearest: 'scale'")
    x = call.x
    return x.like(x.raw * scale + (x.raw * (1.0 - scale)).detach())


def _with_options(call: LayerCall, name: str, opts: Mapping[str, Any]) -> NamedTensor:
    """An activation with options of its own, as `eps` of `safe_log`."""
    function = ELEMENTWISE.get(name)
    python = isinstance(function, FunctionType)  # torch's own have no signature
    known = list(inspect.signature(function).parameters)[1:] if function is not None and python else []
    unknown = [option for option in opts if option not in known]
    if function is None or unknown:
        raise call.error(f"activation {name!r} has no option {unknown or list(opts)}; it has {known}")
    return call.x.dense(function(call.x.raw, **opts))


@register_layer("activation", framewise=True)
def activation(call: LayerCall, *, activation: Any, opts: Mapping[str, Any] | None = None) -> NamedTensor:
    """An activation function."""
    if opts:
        return _with_options(call, str(activation), opts)
    return activate(call.x, activation, call.path)


def _average(*parts: Tensor) -> Tensor:
    return functools.reduce(torch.add, parts) / len(parts)


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda *parts: functools.reduce(function, parts)


def _mod(a: Tensor, b: Tensor) -> Tensor:
    return torch.remainder(a, b)


_COMBINE: dict[str, Callable[..., Tensor]] = {
    "add": _fold(torch.add),
    "sub": _fold(torch.sub),
    "mul": _fold(torch.mul),
    "truediv": _fold(torch.true_divide),
    "floordiv": _fold(torch.floor_divide),
    "mod": _fold(_mod),
    "pow": _fold(torch.pow),
    "average": _average,
    "maximum": _fold(torch.maximum),
    "minimum": _fold(torch.minimum),
    "logical_and": _fold(torch.logical_and),
    "logical_or": _fold(torch.logical_or),
    "logical_xor": _fold(torch.logical_xor),
    "squared_difference": _fold(lambda a, b: (a - b).square()),
    "logaddexp": _fold(torch.logaddexp),
    "atan2": _fold(torch.atan2),
}


@register_layer("combine", concat=False, framewise=True)
def combine(
    call: LayerCall,
    *,
    kind: str,
    eval: str | None = None,
    eval_locals: Mapping[str, Any] | None = None,
    eval_for_output_loss: bool = False,
    activation: Any = None,
    with_bias: bool = False,
    allow_broadcast_all_sources: Any = None,
) -> NamedTensor:
    """Fold the sources with a binary operation, axes broadcast against each other."""
    del eval_for_output_loss, allow_broadcast_all_sources
    if kind == "eval":
        if eval is None:
            raise call.error("kind 'eval' needs the option 'eval'")
        result = evaluate_sources(call, eval, eval_locals)
    else:
        if kind not in _COMBINE:
            raise call.error(f"kind {kind!r} is not supported{nearest(kind, {*_COMBINE, 'eval'})}")
        raws, template = broadcast(call.sources, call.scope.all_hidden)
        raw = _COMBINE[kind](*_same_type(raws, kind))
        keep = template.like if not raw.is_floating_point() and raw.dtype != torch.bool else template.dense
        result = keep(raw.expand([axis.size for axis in template.axes]))
    if with_bias:
        feature = call.feature(result)
        bias = call.param("b", (feature.size,), 0.0)
        shape = [axis.size if axis is feature else 1 for axis in result.axes]
        result = result.dense(result.raw + bias.view(shape))
    return activate(result, activation, call.path)


def _same_type(raws: list[Tensor], kind: str) -> list[Tensor]:
    if kind.startswith("logical"):
        return [raw.bool() for raw in raws]
    kind_of = functools.reduce(torch.promote_types, [raw.dtype for raw in raws])
    return [raw.to(kind_of) for raw in raws]


@register_layer("eval", concat=False, framewise=True)
def eval_layer(
    call: LayerCall,
    *,
    eval: Any,
    eval_locals: Mapping[str, Any] | None = None,
    eval_for_output_loss: bool = False,
    activation: Any = None,
    with_bias: bool = False,
    allow_broadcast_all_sources: Any = None,
) -> NamedTensor:
    """An expression of the sources, `source(0) + 1`, or a function of the config."""
    del eval_for_output_loss, allow_broadcast_all_sources
    if with_bias:
        raise call.error("option 'with_bias' is not supported here; nearest: class 'combine'")
    return activate(evaluate_sources(call, eval, eval_locals), activation, call.path)


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "equal": torch.eq,
    "not_equal": torch.ne,
    "less": torch.lt,
    "less_equal": torch.le,
    "greater": torch.gt,
    "greater_equal": torch.ge,
}


@register_layer("compare", concat=False, framewise=True)
def compare(
    call: LayerCall, *, kind: str = "equal", value: Any = None, allow_broadcast_all_sources: Any = None
) -> NamedTensor:
    """True where all neighbours in (sources, value) compare."""
    del allow_broadcast_all_sources
    if kind not in _COMPARE:
        raise call.error(f"kind {kind!r} is not supported{nearest(kind, _COMPARE)}")
    raws, template = broadcast(call.sources, call.scope.all_hidden)
    operands: list[Any] = [*raws, *([value] if value is not None else [])]
    if len(operands) < 2:
        raise call.error("needs two sources, or one and 'value'")
    pairs = [_COMPARE[kind](a, b) for a, b in itertools.pairwise(operands)]
    raw = functools.reduce(torch.logical_and, pairs)
    return template.dense(raw.expand([axis.size for axis in template.axes]))


@register_layer("switch", concat=False, framewise=True, refs=("condition", "true_from", "false_from"))
def switch(call: LayerCall, *, condition: Any, true_from: Any, false_from: Any) -> NamedTensor:
    """`true_from` where the condition holds, else `false_from`; both are layers or numbers."""
    if isinstance(condition, bool):
        chosen = true_from if condition else false_from
        return _layer_or_number(call, chosen, None)
    test = call.layer(condition)
    given = [call.layer(part) if isinstance(part, str) else None for part in (true_from, false_from)]
    like = next((part for part in given if part is not None), None)
    parts = [
        part if part is not None else _layer_or_number(call, value, like)
        for part, value in zip(given, (true_from, false_from), strict=True)
    ]
    raws, template = broadcast([test, *parts], call.scope.all_hidden)
    dtype = torch.promote_types(raws[1].dtype, raws[2].dtype)
    raw = torch.where(raws[0].bool(), raws[1].to(dtype), raws[2].to(dtype))
    source = like if like is not None else parts[0]
    sparse = source.sparse_dim if template.feature is None else None
    return template.like(
        raw.expand([axis.size for axis in template.axes]), sparse_dim=sparse, vocab=source.vocab if sparse else None
    )


def _layer_or_number(call: LayerCall, value: Any, like: NamedTensor | None) -> NamedTensor:
    if isinstance(value, str):
        return call.layer(value)
    dtype = like.raw.dtype if like is not None else None
    return NamedTensor(torch.tensor(value, device=call.device, dtype=dtype), ())


@register_layer("cast", framewise=True)
def cast(call: LayerCall, *, dtype: str, output: Any = None) -> NamedTensor:
    """The same values in another type."""
    del output
    if dtype not in TORCH_TYPES:
        raise call.error(f"dtype {dtype!r} is not supported{nearest(dtype, TORCH_TYPES)}")
    x = call.x
    return x.like(x.raw.to(TORCH_TYPES[dtype]))


@register_layer("gating", framewise=True)
def gating(call: LayerCall, *, activation: Any, gate_activation: Any = "sigmoid") -> NamedTensor:
    """First half of the features, gated by the second: act(a) * gate(b)."""
    x = call.x
    feature = call.feature(x)
    if feature.size % 2:
        raise call.error(f"needs an even number of features, not {feature.size}")
    half = call.new_feature(feature.size // 2)
    axes = [half if axis is feature else axis for axis in x.axes]
    first, second = x.raw.chunk(2, dim=x.index(feature))
    a = activate(x.dense(first, axes, feature=half), activation, call.path)
    b = activate(x.dense(second, axes, feature=half), gate_activation, call.path)
    return a.dense(a.raw * b.raw)


@register_layer("reduce_out", framewise=True)
def reduce_out(call: LayerCall, *, mode: str, num_pieces: int) -> NamedTensor:
    """Max, mean or sum over groups of `num_pieces` neighbouring features (maxout)."""
    x = call.x
    feature = call.feature(x)
    if feature.size % num_pieces:
        raise call.error(f"{feature.size} features do not divide into pieces of {num_pieces}")
    new = call.new_feature(feature.size // num_pieces)
    rest = [axis for axis in x.axes if axis is not feature]
    pieces = x.expanded([*rest, feature]).unflatten(-1, (new.size, num_pieces))
    functions = {
        "max": lambda p: p.amax(-1),
        "mean": lambda p: p.mean(-1),
        "avg": lambda p: p.mean(-1),
        "sum": lambda p: p.sum(-1),
    }
    if mode not in functions:
        raise call.error(f"mode {mode!r} is not supported{nearest(mode, functions)}")
    return x.dense(functions[mode](pieces), [*rest, new], feature=new)


@register_layer("elemwise_prod", framewise=True)
def elemwise_prod(call: LayerCall, *, axes: Any, size: Any = None, initializer: Any = 1.0) -> NamedTensor:
    """Multiply with a learned tensor over some axes."""
    del size
    x = call.x
    found = call.axes(x, axes)
    weight = call.param("W", tuple(axis.size for axis in found), initializer)
    return x.dense(x.raw * NamedTensor(weight, tuple(found)).to_axes(x.axes))


@register_layer("sparse_softmax_cross_entropy_with_logits", concat=False, framewise=True, refs=("logits", "targets"))
def sparse_softmax_cross_entropy_with_logits(
    call: LayerCall, *, logits: str, targets: str, axis: Any = None
) -> NamedTensor:
    """-log softmax(logits)[targets] at every position."""
    scores, labels = call.layer(logits), call.layer(targets)
    classes = call.axis(scores, axis) if axis is not None else call.feature(scores)
    raws, template = broadcast([scores.like(scores.raw, feature=classes), labels], call.scope.all_hidden)
    dim = template.index(classes)
    log_p = torch.log_softmax(raws[0].expand([a.size for a in template.axes]), dim)
    index = raws[1].long().expand([1 if a is classes else a.size for a in template.axes])
    rest = [a for a in template.axes if a is not classes]
    return template.dense(-log_p.gather(dim, index).squeeze(dim), rest)
