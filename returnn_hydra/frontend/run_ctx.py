"""The run context: what a step marks as loss or output, and what it may ask (epoch, step, train_flag).

A step function gets it by `rf.get_run_ctx()` (RETURNN) or as its argument `run_ctx` (MiniReturnn); both are this class.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from returnn_hydra import batch as shared
from returnn_hydra.frontend.ambient import ambient
from returnn_hydra.frontend.create import convert_to_tensor, num_elements_of_shape
from returnn_hydra.frontend.dim import Dim, batch_dim
from returnn_hydra.frontend.elementwise import cast
from returnn_hydra.frontend.reduce import reduce_sum
from returnn_hydra.frontend.tensor import Tensor, dtype_name
from returnn_hydra.frontend.tensor_dict import TensorDict


@dataclass
class Loss:
    """A marked loss, not reduced yet."""

    loss: Tensor
    name: str
    scale: float = 1.0
    as_error: bool = False
    use_normalized_loss: bool = False
    use_flatten_frames: bool = True
    custom_inv_norm_factor: Tensor | None = None

    def get_summed_loss(self) -> Tensor:
        """Sum over all real frames."""
        return reduce_sum(self.loss, axis=self.loss.dims) if self.loss.dims else self.loss

    def get_inv_norm_factor(self) -> int | Tensor:
        """What the sum is divided by for reports: the number of real frames, or the custom factor's sum."""
        factor = self.custom_inv_norm_factor
        if factor is None:
            return num_elements_of_shape(self.loss.dims)
        return reduce_sum(factor, axis=factor.dims) if factor.dims else factor

    def get_mean_loss(self) -> Tensor:
        """sum / inv_norm_factor."""
        count = self.get_inv_norm_factor()
        if isinstance(count, int):
            return self.get_summed_loss() / float(count)
        total = self.get_summed_loss()
        raw = count.raw_tensor.to(total.raw_tensor.device, total.raw_tensor.dtype)
        return total / Tensor("count", dims=count.dims, dtype=total.dtype, raw_tensor=raw)

    def get_scaled_reduced_loss(self) -> Tensor:
        """What is optimised: scale times the mean (use_normalized_loss) or the sum."""
        reduced = self.get_mean_loss() if self.use_normalized_loss else self.get_summed_loss()
        return reduced if self.scale == 1 else reduced * self.scale


class RunCtx:
    """See the module's text.

    Args:
        stage: "init", "train_step" (evaluation too) or "forward_step".
        train_flag: False in evaluation and forward.
        step: training steps so far (a count of batches).
        epoch: from 1.
        expected_outputs: `model_outputs`; None: anything goes.
        device: where the model is ("cpu", "cuda").
    """

    def __init__(
        self,
        *,
        stage: str,
        train_flag: bool | Tensor = False,
        step: int | Tensor = 0,
        epoch: int | Tensor = 1,
        expected_outputs: TensorDict | None = None,
        device: str | None = None,
        engine: Any = None,
    ) -> None:
        if stage not in ("init", "train_step", "forward_step"):
            raise ValueError(f"stage '{stage}' is none of init, train_step, forward_step")
        self._stage = stage
        self._train_flag = train_flag
        self._train_flag_off_for: list[tuple[bool | Tensor, list[Any]]] = []
        self._step = step
        self._epoch = epoch
        self.epoch_continuous: float | None = None
        self.expected_outputs = expected_outputs
        self.device = device
        self.engine = engine
        self.losses: dict[str, Loss] = {}
        self.outputs = TensorDict()

    def __repr__(self) -> str:
        return f"<RunCtx {self._stage}, epoch {self._epoch}, step {self._step}>"

    @property
    def stage(self) -> str:
        return self._stage

    @property
    def train_flag(self) -> bool | Tensor:
        return self._train_flag

    @property
    def step(self) -> int | Tensor:
        return self._step

    @step.setter
    def step(self, value: int | Tensor) -> None:
        self._step = value

    @property
    def global_step(self) -> int | Tensor:
        """The same as `step`."""
        return self._step

    global_train_step = global_step

    @property
    def epoch(self) -> int | Tensor:
        return self._epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._epoch = value

    def get_step_tensor(self) -> Tensor:
        return convert_to_tensor(self._step, dtype="int64", device="cpu")

    def get_epoch_tensor(self) -> Tensor:
        return convert_to_tensor(self._epoch, dtype="int32", device="cpu")

    def init_step(self) -> None:
        """Forget the losses and outputs of the step before."""
        self.losses = {}
        self.outputs = TensorDict()

    @contextlib.contextmanager
    def train_flag_ctx(self, train_flag: bool | Tensor, *, func: Any = None) -> Iterator[None]:
        """Another train flag inside the block, for everything or only for some functions (`rf.dropout`, ...)."""
        if func is None:
            saved, self._train_flag = self._train_flag, train_flag
            try:
                yield
            finally:
                self._train_flag = saved
            return
        functions = list(func) if isinstance(func, (list, tuple)) else [func]
        self._train_flag_off_for.append((train_flag, functions))
        try:
            yield
        finally:
            self._train_flag_off_for.pop()

    def is_train_flag_enabled(self, *, func: Callable[..., Any] | None = None) -> bool:
        """The train flag as it holds for a function."""
        for flag, functions in reversed(self._train_flag_off_for):
            if func in functions:
                return bool(flag)
        return bool(self._train_flag)

    # --- losses -------------------------------------------------------------------------------------------------

    def mark_as_loss(
        self,
        loss: Any,
        name: str,
        *,
        dims: Sequence[Dim] | None = None,
        scale: float | None = 1.0,
        as_error: bool = False,
        use_normalized_loss: bool = False,
        use_flatten_frames: bool = True,
        custom_inv_norm_factor: Tensor | None = None,
        inv_norm_factor: Any = None,
    ) -> None:
        """Report a loss, and optimise it.

        Args:
            loss: one value per frame or sequence (padding is left out), or a scalar; a Tensor, or a torch tensor
                (with `dims`, or
                all values count).
            scale: weight in what is optimised, not in reports; 0: only reported.
            as_error: only reported.
            use_normalized_loss: optimise the mean instead of the sum.
            custom_inv_norm_factor: what reports (and the mean) divide the sum by, instead of the number of frames.
            inv_norm_factor: MiniReturnn's way: `loss` is a sum, this is its count, and the quotient is optimised.

        Raises:
            ValueError: not in a train step, a name twice, or something that is no tensor.
        """
        if self._stage != "train_step":
            raise ValueError(f"mark_as_loss('{name}'): only in a train step, this is '{self._stage}'")
        if name in self.losses:
            raise ValueError(
                f"mark_as_loss('{name}'): this name was used before; losses so far are {list(self.losses)}"
            )
        if not isinstance(loss, (Tensor, torch.Tensor)):
            raise ValueError(f"mark_as_loss('{name}'): needs a tensor, not {loss!r} ({type(loss).__name__})")
        tensor = _as_loss_tensor(loss, name, dims)
        if inv_norm_factor is not None:
            custom_inv_norm_factor = convert_to_tensor(inv_norm_factor)
            use_normalized_loss = True
        self.losses[name] = Loss(
            tensor,
            name,
            1.0 if scale is None else scale,
            as_error,
            use_normalized_loss,
            use_flatten_frames,
            custom_inv_norm_factor,
        )

    def total_loss(self) -> Tensor | float:
        """What is optimised; 0.0 if every loss is an error or has scale 0.

        Raises:
            ValueError: nothing was marked.
        """
        if not self.losses:
            raise ValueError("the train step marked no loss: call rf.get_run_ctx().mark_as_loss(...)")
        total: Any = 0.0
        for loss in self.losses.values():
            if loss.as_error or loss.scale == 0:
                continue
            total = loss.get_scaled_reduced_loss() + total
        return total

    # --- outputs ------------------------------------------------------------------------------------------------

    def mark_as_default_output(self, tensor: Any, *, shape: Sequence[Dim] | None = None) -> None:
        """mark_as_output with the name "output"."""
        if shape is None and self.expected_outputs is not None and "output" in self.expected_outputs:
            shape = self.expected_outputs["output"].dims if not isinstance(tensor, Tensor) else None
        self.mark_as_output(tensor, "output", dims=shape)

    def mark_as_output(self, tensor: Any, name: str, *, dims: Sequence[Dim] | None = None) -> None:
        """Give something out of a forward step.

        Args:
            tensor: a Tensor, or a torch tensor (batch first).
            dims: the order of the axes; for a torch tensor without it, the dims of `model_outputs`, else (batch,
                static sizes).

        Raises:
            ValueError: unknown, given twice, or not what `model_outputs` says.
        """
        if name in self.outputs:
            raise ValueError(f"mark_as_output('{name}'): this name was used before")
        expected = None
        if self.expected_outputs is not None:
            if name not in self.expected_outputs:
                raise ValueError(
                    f"mark_as_output('{name}'): model_outputs has only {sorted(self.expected_outputs.data)}"
                )
            expected = self.expected_outputs[name]
        tensor = _as_output_tensor(tensor, name, dims, expected)
        if expected is not None:
            _check_output(name, tensor, expected, dims)
        self.outputs.data[name] = tensor

    def check_outputs_complete(self) -> None:
        """Raises ValueError if an output of `model_outputs` was not marked."""
        if self.expected_outputs is None:
            return
        missing = sorted(set(self.expected_outputs.data) - set(self.outputs.data))
        if missing:
            raise ValueError(
                f"the forward step did not mark the outputs {missing}; it marked {sorted(self.outputs.data)}"
            )

    # --- to the rest of the project -----------------------------------------------------------------------------

    def shared_losses(self) -> dict[str, shared.Loss]:
        """The losses as the engine knows them: sums and counts.

        The engine optimises scale * sum. A loss with use_normalized_loss therefore has its count in the scale.
        """
        if not self.losses:
            self.total_loss()
        return {name: _shared_loss(loss) for name, loss in self.losses.items()}

    def shared_outputs(self) -> dict[str, shared.Output]:
        """The outputs as the engine knows them: batch first, then the axis with lengths."""
        self.check_outputs_complete()
        return {name: _shared_output(name, tensor) for name, tensor in self.outputs.data.items()}


def _as_loss_tensor(loss: Any, name: str, dims: Sequence[Dim] | None) -> Tensor:
    if not isinstance(loss, Tensor):
        if dims is None:
            dims = [Dim(size, name=f"{name}_dim{axis}") for axis, size in enumerate(loss.shape)]
        loss = Tensor(name, dims=dims, dtype=dtype_name(loss), raw_tensor=loss)
    if not loss.raw_tensor.is_floating_point():
        loss = cast(loss, "float32")
    if loss.sparse_dim is not None:
        loss = loss.copy()
        loss.sparse_dim = None
    return loss


def _shared_loss(loss: Loss) -> shared.Loss:
    count = loss.get_inv_norm_factor()
    if isinstance(count, Tensor):
        count = count.raw_tensor
    scale = float(loss.scale)
    if loss.use_normalized_loss and scale != 0 and not loss.as_error:
        scale = scale / float(count)
    return shared.Loss(
        loss.get_summed_loss().raw_tensor,
        count.detach() if isinstance(count, torch.Tensor) else count,
        scale=scale,
        as_error=loss.as_error,
    )


def _as_output_tensor(tensor: Any, name: str, dims: Sequence[Dim] | None, expected: Tensor | None) -> Tensor:
    if isinstance(tensor, Tensor):
        if dims is None:
            dims = _output_order(tensor, expected)
        out = tensor.copy_transpose(dims)
        out.name = name
        return out
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"mark_as_output('{name}'): needs a tensor, not {tensor!r}")
    if dims is None and expected is not None:
        if len(expected.dims) != tensor.ndim:
            raise ValueError(
                f"mark_as_output('{name}'): shape {tuple(tensor.shape)} for model_outputs' dims {list(expected.dims)}"
            )
        dims = expected.dims
    if dims is None:
        if tensor.ndim == 0:
            raise ValueError(f"mark_as_output('{name}'): a scalar has no batch axis")
        dims = [batch_dim, *(Dim(size, name=f"{name}_dim{axis}") for axis, size in enumerate(tensor.shape[1:], 1))]
    feature = expected.feature_dim if expected is not None and expected.feature_dim in dims else None
    sparse = expected.sparse_dim if expected is not None else None
    return Tensor(name, dims=dims, dtype=dtype_name(tensor), sparse_dim=sparse, feature_dim=feature, raw_tensor=tensor)


def _output_order(tensor: Tensor, expected: Tensor | None) -> Sequence[Dim]:
    """Batch, time, feature, if that is clear."""
    if expected is not None and set(expected.dims) == tensor.dims_set:
        return expected.dims
    batch = [d for d in tensor.dims if d.is_batch_dim()]
    feature = [] if tensor.feature_dim is None else [tensor.feature_dim]
    rest = [d for d in tensor.dims if d not in batch and d not in feature]
    dynamic = [d for d in rest if d.is_dynamic()]
    static = [d for d in rest if d not in dynamic] + feature
    if len(batch) <= 1 and len(dynamic) <= 1 and len(static) <= 1:
        return [*batch, *dynamic, *static]
    if len(batch) == 1 and len(rest) <= 1:
        return [*batch, *rest, *feature]
    if expected is not None:
        return tensor.dims
    raise ValueError(f"cannot tell the order of the axes of output {tensor}; pass `dims`")


def _check_output(name: str, tensor: Tensor, expected: Tensor, dims: Sequence[Dim] | None) -> None:
    where = f"output '{name}' {tensor}, model_outputs expects {expected}"
    if dims is not None and tuple(dims) != tuple(expected.dims):
        raise ValueError(f"{where}: the given dims {list(dims)} are not the expected ones {list(expected.dims)}")
    if len(tensor.dims) != len(expected.dims):
        raise ValueError(f"{where}: {len(tensor.dims)} axes instead of {len(expected.dims)}")
    for axis, (found, wanted) in enumerate(zip(tensor.dims, expected.dims, strict=True)):
        if found.dimension != wanted.dimension:
            sizes = [d.dimension if d.dimension is not None else "one length per sequence" for d in (found, wanted)]
            raise ValueError(f"{where}: axis {axis} has {sizes[0]} instead of {sizes[1]}")
    if tensor.dtype != expected.dtype:
        raise ValueError(f"{where}: dtype {tensor.dtype} instead of {expected.dtype}")
    if (tensor.sparse_dim is None) != (expected.sparse_dim is None) or (
        tensor.sparse_dim is not None
        and expected.sparse_dim is not None
        and tensor.sparse_dim.dimension != expected.sparse_dim.dimension
    ):
        raise ValueError(f"{where}: classes {tensor.sparse_dim} instead of {expected.sparse_dim}")


def _shared_output(name: str, tensor: Tensor) -> shared.Output:
    batch = [axis for axis, d in enumerate(tensor.dims) if d.is_batch_dim()]
    if not batch:
        raise ValueError(f"output '{name}' {tensor} has no batch axis, so it cannot be given out per sequence")
    tensor = tensor.copy_move_axis(batch[0], 0)
    dynamic = [d for d in tensor.dims[1:] if d.dyn_size_ext is not None and d.dyn_size_ext.dims]
    if not dynamic:
        return shared.Output(tensor.raw_tensor)
    time = dynamic[0]
    tensor = tensor.copy_move_axis(tensor.dims.index(time), 1)
    lengths = time.dyn_size_ext
    assert lengths is not None
    others = [d for d in lengths.dims if not d.is_batch_dim()]
    raw = lengths.raw_tensor
    if others:  # one length per beam entry: the sequence keeps the longest of them
        raw = lengths.copy_compatible_to_dims_raw([tensor.dims[0], *others]).flatten(1).amax(1)
    return shared.Output(tensor.raw_tensor, raw.long())


# --- the current one --------------------------------------------------------------------------------------------


def get_run_ctx() -> RunCtx:
    """The current run context; outside of a step one with stage "init"."""
    if ambient.run_ctx is None:
        ambient.run_ctx = RunCtx(stage="init")
    return ambient.run_ctx


def get_run_ctx_step() -> Tensor:
    """The step as a tensor."""
    return get_run_ctx().get_step_tensor()


def reset_run_ctx() -> None:
    """Out of a step again."""
    ambient.run_ctx = None


def init_train_step_run_ctx(
    *, train_flag: bool | Tensor = True, step: int | Tensor = 0, epoch: int | Tensor = 1, device: str | None = None,
    engine: Any = None,
) -> None:  # fmt: skip
    """Begin a train step (or, with train_flag=False, an evaluation step)."""
    ambient.run_ctx = RunCtx(
        stage="train_step", train_flag=train_flag, step=step, epoch=epoch, device=device, engine=engine
    )


def init_forward_step_run_ctx(
    *, expected_outputs: TensorDict | None = None, step: int | Tensor = 0, epoch: int | Tensor = 1,
    device: str | None = None, engine: Any = None,
) -> None:  # fmt: skip
    """Begin a forward step."""
    ambient.run_ctx = RunCtx(
        stage="forward_step", expected_outputs=expected_outputs, step=step, epoch=epoch, device=device, engine=engine
    )


def init_load_run_ctx(*, device: str | None = None, engine: Any = None, epoch: int = 1, step: int = 0) -> None:
    """Before the model is made."""
    ambient.run_ctx = RunCtx(stage="init", epoch=epoch, step=step, device=device, engine=engine)
