"""A RETURNN config's step functions and forward callback as this project's: they take a `Batch` and return losses
or outputs.

Both public forms work: RETURNN's `train_step(*, model, extern_data, **kw)` with `rf.get_run_ctx()`, and MiniReturnn's
`train_step(*, model, data, run_ctx, **kw)` with raw tensors. A function gets the arguments its signature names;
one with
`**kwargs` gets all of them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from returnn_hydra.batch import Batch, Loss, Output
from returnn_hydra.frontend.ambient import ambient_state
from returnn_hydra.frontend.bridge import RFModuleAsPTModule
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.extern_data import fill_from_batch, raw_dict
from returnn_hydra.frontend.forward_callback import ForwardCallbackIface
from returnn_hydra.frontend.module import Module
from returnn_hydra.frontend.run_ctx import RunCtx
from returnn_hydra.frontend.tensor import Tensor, dtype_name
from returnn_hydra.frontend.tensor_dict import TensorDict


def call_with_wanted(
    function: Callable[..., Any],
    available: Mapping[str, Any],
    *,
    first: Any = None,
    on_request: Mapping[str, Any] | None = None,
) -> Any:
    """Call a function with those of these arguments that its signature names; with all if it has `**kwargs`.

    Args:
        first: given to the first positional parameter, if that has none of these names.
        on_request: further ones, which only a signature with their names gets.

    Raises:
        TypeError: it needs an argument that there is none of; lists those there are.
    """
    parameters = inspect.signature(function).parameters
    leading = next((p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)), None)
    if first is not None and leading is not None and leading.name not in available:
        return call_with_wanted(functools.partial(function, first), available, on_request=on_request)
    requested = {name: value for name, value in (on_request or {}).items() if name in parameters}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        wanted = dict(available)
    else:
        wanted = {name: available[name] for name in parameters if name in available}
    wanted |= requested
    unknown = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in wanted
    ]
    if unknown:
        name = getattr(function, "__qualname__", repr(function))
        raise TypeError(f"{name}: there is nothing to pass as {unknown}; it can ask for {sorted(available)}")
    return function(**wanted)


def user_model(model: nn.Module) -> Any:
    """The model as the config's `get_model` made it: without wrappers for distribution or the frontend."""
    while (
        hasattr(model, "module") and isinstance(model.module, nn.Module) and type(model).__name__.endswith("Parallel")
    ):
        model = model.module
    return model.rf_module if isinstance(model, RFModuleAsPTModule) else model


def as_torch_module(model: Any) -> nn.Module:
    """What `get_model` returned as a torch module.

    Raises:
        TypeError: it is neither a torch nor a frontend module.
    """
    if isinstance(model, Module):
        return RFModuleAsPTModule(model)
    if isinstance(model, nn.Module):
        return model
    raise TypeError(f"get_model must return a torch.nn.Module or an rf.Module, it returned {type(model).__name__}")


def _device(model: nn.Module) -> str:
    parameter = next(model.parameters(), None)
    return "cpu" if parameter is None else str(parameter.device)


class RFTrainStep:
    """(model, batch) -> losses, by a config's `train_step`.

    The engine must optimise the sum of scale * sum (RETURNN's way); a loss marked with use_normalized_loss has 1 /
    count
    in its scale. The train flag is the model's mode.

    Args:
        function: the config's train_step.
        templates: of `extern_data`; None: raw tensors only (MiniReturnn's form).
        engine: what the run context gives as `engine`.

    `global_step` counts the batches trained; set it when a run is resumed. `error_names`: losses marked as errors.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        templates: TensorDict | None = None,
        *,
        float_dtype: str | None = None,
        engine: Any = None,
    ) -> None:
        self.function = function
        self.engine = engine
        self.templates = templates
        self.float_dtype = float_dtype
        self.global_step = 0
        self.epoch_continuous: float | None = None
        self.error_names: set[str] = set()

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Loss]:
        ctx = RunCtx(
            stage="train_step",
            train_flag=model.training,
            step=self.global_step,
            epoch=batch.epoch,
            device=_device(model),
            engine=self.engine,
        )
        ctx.epoch_continuous = self.epoch_continuous
        if self.engine is not None:
            self.engine._model, self.engine.epoch = user_model(model), batch.epoch
        with ambient_state(run_ctx=ctx, device=ctx.device):
            arguments = _arguments(model, batch, ctx, self.templates, False, self.float_dtype)
            call_with_wanted(self.function, arguments, on_request=_on_request(ctx))
            losses = ctx.shared_losses()
        self.error_names |= {name for name, loss in losses.items() if loss.as_error}
        if model.training:
            self.global_step += 1
        return losses


def _arguments(
    model: nn.Module,
    batch: Batch,
    ctx: RunCtx,
    templates: TensorDict | None,
    inference: bool,
    float_dtype: str | None,
) -> dict[str, Any]:
    arguments = {"model": user_model(model), "data": raw_dict(batch), "run_ctx": ctx}
    if templates is not None:
        arguments["extern_data"] = fill_from_batch(templates, batch, inference=inference, float_dtype=float_dtype)
    return arguments


def _on_request(ctx: RunCtx) -> dict[str, Any]:
    """Arguments under names that older or other setups use."""
    return {
        "train_ctx": ctx,
        "epoch": ctx.epoch,
        "step": ctx.step,
        "global_train_step": ctx.step,
        "epoch_continuous": ctx.epoch_continuous,
    }


@dataclass(frozen=True)
class RFOutput(Output):
    """An output that gives every sequence as a frontend tensor with numpy values, as RETURNN's callbacks expect."""

    source: Tensor | None = None

    def per_sequence(self) -> list[Any]:
        """One Tensor per sequence, without batch axis and padding; bfloat16 becomes float32."""
        assert self.source is not None
        return tensors_per_sequence(self.source)


def tensors_per_sequence(tensor: Tensor) -> list[Tensor]:
    """Cut a batch into sequences: no batch axis, padding of every dynamic axis cut to the sequence's own length.

    An axis with several lengths per sequence (beam entries) keeps the longest; its dim then has them.
    """
    axis = tensor.batch_dim_axis
    assert axis is not None
    tensor = tensor.copy_move_axis(axis, 0)
    batch = tensor.dims[0]
    raw = tensor.raw_tensor
    if isinstance(raw, torch.Tensor):
        raw = raw.detach()
        raw = (raw.float() if raw.dtype == torch.bfloat16 else raw).cpu().numpy()
    return [_sequence(tensor, batch, raw[index], index) for index in range(len(raw))]


def _sequence(tensor: Tensor, batch: Dim, raw: Any, index: int) -> Tensor:
    raw = np.asarray(raw)
    dims = []
    for axis, dim in enumerate(tensor.dims[1:]):
        lengths = dim.dyn_size_ext
        if lengths is None or batch not in lengths.dims:
            dims.append(dim)
            continue
        others = [d for d in lengths.dims if d != batch]
        own = np.asarray(lengths.copy_transpose([batch, *others]).raw_tensor[index].cpu().numpy())
        size = Tensor(dim.name, dims=others, dtype=dtype_name(own), raw_tensor=own)
        dims.append(Dim(None, name=dim.name, dyn_size_ext=size))
        raw = raw.take(range(int(own.max()) if own.size else 0), axis=axis)
    feature = tensor.feature_dim if tensor.feature_dim in dims else None
    return Tensor(
        tensor.name, dims=dims, dtype=dtype_name(raw), sparse_dim=tensor.sparse_dim, feature_dim=feature, raw_tensor=raw
    )


class RFForwardStep:
    """(model, batch) -> outputs, by a config's `forward_step`.

    Args:
        function: the config's forward_step.
        templates: of `extern_data`; None: raw tensors only.
        model_outputs: templates of `model_outputs`; None: any outputs.
        as_tensors: sequences reach the callback as frontend tensors (for ForwardCallbackAdapter), not as arrays.
        run_ctx: one context for all batches (MiniReturnn: hooks keep files and the like in it).
    """

    def __init__(
        self,
        function: Callable[..., Any],
        templates: TensorDict | None = None,
        model_outputs: TensorDict | None = None,
        *,
        as_tensors: bool = True,
        step: int = 0,
        epoch: int = 1,
        float_dtype: str | None = None,
        run_ctx: RunCtx | None = None,
    ) -> None:
        self.function = function
        self.templates = templates
        self.model_outputs = model_outputs
        self.as_tensors = as_tensors
        self.step = step
        self.epoch = epoch
        self.float_dtype = float_dtype
        self.run_ctx = run_ctx

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Output]:
        ctx = self.run_ctx or RunCtx(
            stage="forward_step", expected_outputs=self.model_outputs, step=self.step, epoch=self.epoch
        )
        ctx.device = _device(model)
        ctx.init_step()
        with ambient_state(run_ctx=ctx, device=ctx.device):
            arguments = _arguments(model, batch, ctx, self.templates, True, self.float_dtype)
            if ctx.engine is not None and ctx.engine._model is not None:
                arguments["model"] = ctx.engine._model  # an init hook may have put another one there
            call_with_wanted(self.function, arguments, on_request=_on_request(ctx))
            outputs = ctx.shared_outputs()
        if not self.as_tensors:
            return outputs
        return {
            name: RFOutput(output.tensor, output.lengths, source=ctx.outputs[name]) for name, output in outputs.items()
        }


class ForwardCallbackAdapter:
    """A config's forward callback (class, instance or factory) for the forward task; use with RFForwardStep.

    Raises:
        TypeError: what was given does not lead to an object with init, process_seq and finish.
    """

    def __init__(self, callback: Any) -> None:
        if not hasattr(callback, "process_seq") or isinstance(callback, type):
            if not callable(callback):
                raise TypeError(
                    f"forward_callback: expected a ForwardCallbackIface, its class or a factory, not {callback!r}"
                )
            callback = callback()
        if not hasattr(callback, "process_seq"):
            raise TypeError(
                f"forward_callback: {callback!r} has no process_seq; derive from {ForwardCallbackIface.__name__}"
            )
        self.callback = callback

    def init(self, model: nn.Module) -> None:
        """Before the first sequence."""
        self.callback.init(model=user_model(model))

    def process_seq(self, seq_tag: str, outputs: Mapping[str, Any]) -> None:
        """One sequence: frontend tensors, or arrays (which get dims of their sizes)."""
        tensors = {name: _as_tensor(name, value) for name, value in outputs.items()}
        self.callback.process_seq(seq_tag=seq_tag, outputs=TensorDict(tensors))

    def finish(self) -> None:
        """After the last sequence."""
        self.callback.finish()


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    value = np.asarray(value)
    dims = [Dim(size, name=f"{name}_dim{axis}") for axis, size in enumerate(value.shape)]
    return Tensor(name, dims=dims, dtype=dtype_name(value), raw_tensor=value)


class HookCallback:
    """MiniReturnn's init and finish hooks (`forward_init_hook`, `prior_finish_hook`, ...) as a forward callback.

    The step itself writes what it wants; make its RFForwardStep with this object's `run_ctx`.
    """

    def __init__(
        self,
        init_hook: Callable[..., Any] | None,
        finish_hook: Callable[..., Any] | None,
        *,
        epoch: int = 1,
        engine: Any = None,
    ) -> None:
        self.init_hook = init_hook
        self.finish_hook = finish_hook
        self.run_ctx = RunCtx(stage="forward_step", epoch=epoch, engine=engine)
        self._model: nn.Module | None = None

    def _call(self, hook: Callable[..., Any] | None) -> None:
        if hook is None:
            return
        assert self._model is not None
        self.run_ctx.device = _device(self._model)
        with ambient_state(run_ctx=self.run_ctx, device=self.run_ctx.device):
            call_with_wanted(hook, {"run_ctx": self.run_ctx, "model": user_model(self._model)}, first=self.run_ctx)

    def init(self, model: nn.Module) -> None:
        """Before the first batch."""
        self._model = model
        if self.run_ctx.engine is not None:
            self.run_ctx.engine._model = user_model(model)
        self._call(self.init_hook)

    def process_seq(self, seq_tag: str, outputs: Mapping[str, Any]) -> None:
        """Nothing: the step has done it."""

    def finish(self) -> None:
        """After the last batch."""
        self._call(self.finish_hook)
