"""Loops and branches. They run at once, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from returnn_hydra.frontend.arrays import lengths_dim
from returnn_hydra.frontend.create import convert_to_tensor
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.elementwise import logical_and, where
from returnn_hydra.frontend.tensor import Tensor
from returnn_hydra.frontend.tensor_array import TensorArray


def _is_true(value: Any) -> bool:
    if isinstance(value, Tensor):
        if value.dims:
            raise ValueError(f"a condition must be a scalar, not {value}; use rf.reduce_any or rf.reduce_all")
        return bool(value.raw_tensor)
    return bool(value)


def cond(pred: Any, true_fn: Callable[[], Any], false_fn: Callable[[], Any]) -> Any:
    """The result of one of the two functions."""
    return true_fn() if _is_true(pred) else false_fn()


def while_loop(cond: Callable[[Any], Any], body: Callable[[Any], Any], initial: Any) -> Any:
    """state = body(state) as long as cond(state)."""
    state = initial
    while _is_true(cond(state)):
        state = body(state)
    return state


def map_nested(function: Callable[..., Any], value: Any, *others: Any) -> Any:
    """Apply a function to every tensor of nested dicts, lists and tuples."""
    if isinstance(value, dict):
        mapped = {k: map_nested(function, v, *(o[k] for o in others)) for k, v in value.items()}
        result = type(value)() if type(value) is not dict else {}
        result.update(mapped)
        return result
    if isinstance(value, (list, tuple)):
        parts = [map_nested(function, v, *(o[n] for o in others)) for n, v in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return None if value is None else function(value, *others)


def scan(
    *,
    spatial_dim: Dim | None = None,
    cond_dims: Sequence[Dim] | None = None,
    cond_before_body: bool = True,
    initial: Any = None,
    xs: Any = None,
    ys: Any = None,
    cond: Callable[[Any, Any], Tensor] | None = None,
    body: Callable[[Any, Any], tuple[Any, Any]],
    max_seq_len: int | Tensor | None = None,
    return_tensor_arrays: bool = False,
) -> tuple[Any, Any, Dim]:
    """y[t], state = body(x[t], state) over the frames of `spatial_dim`, or as long as `cond(x[t], state)`.

    Args:
        xs: nested tensors with `spatial_dim`, cut into frames.
        ys: templates of what the body gives per frame.
        cond: with `cond_dims`, one answer per sequence: sequences end one by one; without, a scalar.
        cond_before_body: ask before the body (else after it, and the frame counts).

    Returns:
        The frames stacked, the last state (with padding: that after each sequence's own last frame), and their dim.
    """
    if spatial_dim is None and cond is None:
        raise ValueError("scan: needs spatial_dim, or cond (how long to go on)")
    if cond is not None:
        return _scan_while(
            spatial_dim,
            list(cond_dims or ()),
            cond_before_body,
            initial,
            ys,
            cond,
            body,
            max_seq_len,
            return_tensor_arrays,
        )
    assert spatial_dim is not None
    frames = map_nested(lambda x: TensorArray.unstack(x, axis=spatial_dim), xs)
    arrays = map_nested(TensorArray, ys)
    state = initial
    for index in range(spatial_dim.get_dim_value()):
        x = map_nested(lambda array, i=index: array[i], frames)
        y, new_state = body(x, state)
        arrays = map_nested(lambda array, frame: array.push_back(frame), arrays, y)
        state = new_state if not spatial_dim.need_masking() else _kept_state(spatial_dim, index, new_state, state)
    outputs = arrays if return_tensor_arrays else map_nested(lambda a: a.stack(axis=spatial_dim), arrays)
    return outputs, state, spatial_dim


def _kept_state(dim: Dim, index: int, new: Any, old: Any) -> Any:
    """The new state where a sequence still has this frame, else the old one."""
    lengths = dim.get_size_tensor()
    if bool((lengths.raw_tensor > index).all()):
        return new

    def choose(after: Any, before: Any) -> Any:
        if not _replaces(after, before, lengths):
            return after
        active = Tensor(
            "active",
            dims=lengths.dims,
            dtype="bool",
            raw_tensor=(lengths.raw_tensor > index).to(after.raw_tensor.device),
        )
        return where(active, after, before).copy_transpose(after.dims)

    return map_nested(choose, new, old)


def _replaces(new: Any, old: Any, condition: Tensor) -> bool:
    """Whether both are tensors that a condition can choose from; a state may get other dims in the body."""
    if not isinstance(new, Tensor):
        return False
    return condition.dims_set <= new.dims_set and (not isinstance(old, Tensor) or old.dims_set <= new.dims_set)


def _scan_while(
    spatial_dim: Dim | None, cond_dims: list[Dim], before_body: bool, initial: Any, ys: Any,
    cond: Callable[[Any, Any], Any],
    body: Callable[[Any, Any], Any], max_seq_len: Any, as_arrays: bool,
) -> tuple[Any, Any, Dim]:  # fmt: skip
    limit = None if max_seq_len is None else max_seq_len.raw_tensor if isinstance(max_seq_len, Tensor) else max_seq_len
    arrays, state = map_nested(TensorArray, ys), initial
    running: Tensor | None = None
    count: Any = None
    step = 0
    while limit is None or bool(torch.as_tensor(step < limit).any()):
        if before_body:
            running = _still(running, cond(None, state))
            if not bool(running.raw_tensor.any()):
                break
        y, new_state = body(None, state)
        arrays = map_nested(lambda array, frame: array.push_back(frame), arrays, y)
        ones = None if running is None else running.raw_tensor.to(torch.int32).cpu()
        count = ones if count is None else count + (1 if ones is None else ones)
        state = new_state if running is None or not running.dims else _chosen(running, new_state, state)
        step += 1
        if not before_body:
            running = _still(running, cond(None, state))
            if not bool(running.raw_tensor.any()):
                break
    dims = [] if running is None else list(running.dims)
    if not before_body or count is None:
        count = (
            torch.full([d.get_dim_value() for d in dims], step, dtype=torch.int32)
            if count is None or not dims
            else count + (0 if before_body else 1)
        )
        count = count.clamp(max=step)
    lengths = convert_to_tensor(count.to(torch.int32), dims=dims, name="scan_dim")
    dim = lengths_dim("scan_dim", lengths, spatial_dim)
    return arrays if as_arrays else map_nested(lambda a: a.stack(axis=dim), arrays), state, dim


def _still(running: Tensor | None, answer: Any) -> Tensor:
    answer = convert_to_tensor(answer)
    return answer if running is None else logical_and(running, answer)


def _chosen(running: Tensor, new: Any, old: Any) -> Any:
    def choose(after: Any, before: Any) -> Any:
        if not _replaces(after, before, running):
            return after
        return where(running, after, before).copy_transpose(after.dims)

    return map_nested(choose, new, old)


def assert_(condition: Any, message: str, *, stop: bool = True) -> None:
    """Raises AssertionError with `message` if the condition does not hold."""
    raw = condition.raw_tensor if isinstance(condition, Tensor) else torch.as_tensor(condition)
    if not bool(raw.all()) and stop:
        raise AssertionError(message)


def inner_loop(*args: Any, **kwargs: Any) -> Any:
    """The same as scan."""
    return scan(*args, **kwargs)
