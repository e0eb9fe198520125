"""The losses of a network dict (`loss`, `loss_opts`), each a sum over frames or sequences.

Legend: B batch, T time, F classes, N frames of all sequences, flattened.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from returnn_hydra.batch import Loss
from returnn_hydra.network.activations import activate, safe_log
from returnn_hydra.network.axis import Axis
from returnn_hydra.network.call import LOSSES_WITHOUT_TARGET, LayerCall
from returnn_hydra.network.errors import nearest
from returnn_hydra.network.named_tensor import NamedTensor, unify
from returnn_hydra.network.sampling import sampled_loss

COMMON = (
    "scale",
    "use_normalized_loss",
    "custom_norm_factor",
    "custom_inv_norm_factor",
    "use_flatten_frames",
    "base_network",
)


@dataclass(frozen=True)
class LossInput:
    """What a loss is computed from.

    Attributes:
        call: the layer.
        output: its output.
        target: the reference, if the loss has one.
    """

    call: LayerCall
    output: NamedTensor
    target: NamedTensor | None

    @property
    def reference(self) -> NamedTensor:
        if self.target is None:
            raise self.call.error("the loss needs a 'target'")
        return self.target

    def time_axis(self) -> Axis | None:
        return self.call.finder.time(self.output)


@dataclass(frozen=True)
class LossValue:
    """Sums: what is optimised, and the error that is only reported; None if there is none.

    `count`: what the reported score is divided by, if it is not the number of frames.
    """

    value: Tensor | None
    error: Tensor | None = None
    count: float | None = None


LossFunction = Callable[..., LossValue]
_LOSSES: dict[str, LossFunction] = {}
NOT_HERE = {
    "sprint": "RASR is not called; sequence training needs its own program",
    "fast_bw": "RASR's automata are not read; use 'ctc', or the alignment of a frame-wise model with 'ce'",
}
"""Losses of RETURNN that are not supported, and what to do without them."""


def register_loss(name: str) -> Callable[[LossFunction], LossFunction]:
    """Decorator: make a function `(LossInput, **loss_opts) -> LossValue` available as `"loss": name`."""

    def decorate(function: LossFunction) -> LossFunction:
        _LOSSES[name] = function
        return function

    return decorate


def compute_loss(call: LayerCall, output: NamedTensor, name: Any, options: dict[str, Any]) -> LossValue:
    """Value and error of a named loss.

    Raises:
        NetworkError: unknown loss or option.
    """
    if name in NOT_HERE:
        raise call.error(f"loss {name!r} is not supported: {NOT_HERE[name]}")
    if not isinstance(name, str) or name not in _LOSSES:
        raise call.error(f"loss {name!r} is not supported{nearest(name, _LOSSES)}")
    function = _LOSSES[name]
    known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise call.error(f"loss {name!r} has no option {option!r}{nearest(option, (*known, *COMMON))}")
    target = None if name in LOSSES_WITHOUT_TARGET else call.scope.target(call.default_target())
    return function(LossInput(call, output, target), **options)


def report_loss(call: LayerCall, output: NamedTensor) -> None:
    """Compute the loss of a layer and hand it to the run, as sum and count."""
    if call.options.get("loss_only_on_non_search") and call.run.search:
        return
    options = dict(call.options.get("loss_opts") or {})
    common = {key: options.pop(key) for key in COMMON if key in options}
    if call.run.building:
        if call.needs_target:
            call.scope.target_spec(call.default_target())  # a wrong name shows now
        return
    result = compute_loss(call, output, call.options["loss"], options)
    count = result.count if result.count is not None else loss_count(call, output, common)
    scale = float(call.options.get("loss_scale", common.get("scale", 1.0)))
    if result.value is not None:
        scale_by = 1.0 / max(float(count), 1.0) if common.get("use_normalized_loss") else 1.0
        call.run.losses[call.path] = Loss(result.value, count, scale * scale_by)
    if result.error is not None:
        call.run.errors[call.path] = Loss(result.error.detach(), count, as_error=True)


def loss_count(call: LayerCall, output: NamedTensor, common: dict[str, Any]) -> float:
    """What the reported score is divided by: frames of the target, else of the output, else sequences."""
    factor = common.get("custom_norm_factor")
    if isinstance(factor, (int, float)):
        return 1.0 / factor
    inverse = common.get("custom_inv_norm_factor")
    if isinstance(inverse, str):
        return float(call.layer(inverse).raw.sum())
    if factor is not None or inverse is not None:
        raise call.error(f"loss_opts: custom norm factor {factor or inverse!r} is neither a number nor a layer")
    candidates = [output]
    if call.options.get("target"):
        candidates.insert(0, call.scope.target(call.default_target()))
    for tensor in candidates:
        time = call.loop_axis if call.loop_axis in tensor.axes else call.finder.time(tensor)
        if time is not None and time.lengths is not None:
            return float(time.lengths.sum())
    batch = output.batch_axis
    return float(batch.size if batch is not None else 1)


# --- alignment of output and target


def _weights(tensor: NamedTensor, axes: Sequence[Axis]) -> Tensor:
    """1 at real positions of these axes, 0 at padding."""
    ones = NamedTensor(torch.ones([a.size for a in axes], device=tensor.raw.device), tuple(axes))
    dynamic = [axis for axis in axes if axis.is_dynamic and all(over in axes for over in axis.over)]
    return ones.masked(dynamic, 0.0)


def sum_frames(values: NamedTensor) -> Tensor:
    """Sum over all real positions."""
    raw = values.raw if values.raw.dtype == torch.float64 else values.raw.float()
    return torch.where(
        _weights(values, values.axes) > 0, raw, torch.zeros((), dtype=raw.dtype, device=raw.device)
    ).sum()


def _paired(data: LossInput) -> tuple[NamedTensor, NamedTensor]:
    """Output and target with the same axes.

    Raises:
        NetworkError: their lengths differ.
    """
    output, target = data.output, data.reference
    features = [t.feature for t in (output, target)]
    if features[0] is not None and features[1] is not None and features[0].size != features[1].size:
        raise data.call.error(f"output of dimension {features[0].size}, but target of dimension {features[1].size}")
    one, two = unify([output, target])
    allowed = {*one.axes} | ({two.feature} if two.feature is not None else set())
    extra = [axis for axis in two.axes if axis not in allowed]
    if extra:
        raise data.call.error(
            f"output and target have different lengths: output {list(output.axes)}, target {list(target.axes)}"
        )
    return one, two


def _frame_error(output: NamedTensor, target: NamedTensor) -> Tensor:
    """Frames where the best class is not the reference."""
    assert output.feature is not None
    best = output.raw.argmax(output.index(output.feature))
    rest = [axis for axis in output.axes if axis is not output.feature]
    reference = target
    if target.feature is not None:
        axes = [axis for axis in target.axes if axis is not target.feature]
        reference = NamedTensor(target.raw.argmax(target.index(target.feature)), tuple(axes))
    wrong = best != reference.to_axes(rest)
    return sum_frames(NamedTensor(wrong, tuple(rest)))


def _log_probs(output: NamedTensor) -> tuple[NamedTensor | None, NamedTensor]:
    """Logits where a softmax made the output, else None; and the output."""
    before = output.before_activation
    if before is not None and before[0] == "softmax" and before[1].axes == output.axes:
        return before[1], output
    return None, output


@register_loss("ce")
def cross_entropy(
    data: LossInput,
    *,
    focal_loss_factor: float = 0.0,
    label_smoothing: float = 0.0,
    label_smoothing_gaussian: bool = False,
    debug_dump: bool = False,
    safe_log_opts: dict[str, Any] | None = None,
    use_fused: bool = True,
    fake_upper_bound: float | None = None,
    input_type: str = "prob",
) -> LossValue:
    """-log p(target); a dense target is a distribution."""
    del debug_dump, use_fused
    output, target = _paired(data)
    if output.feature is None:
        raise data.call.error("loss 'ce' needs an output with a feature axis")
    before = replace(data.output).before_activation
    is_softmax = before is not None and before[0] == "softmax"
    logits = output if input_type == "logits" else None
    if is_softmax and input_type == "prob":
        assert before is not None
        logits = unify([before[1], data.reference])[0]
    rest = [axis for axis in output.axes if axis is not output.feature]
    eps = (safe_log_opts or {}).get("eps", 1e-20)
    log_p = _class_log_probs(output, logits, rest, eps)  # (*rest, F)
    if target.feature is not None:
        value = -(target.expanded([*rest, target.feature]) * log_p).sum(-1)
    else:
        labels = target.expanded(rest).long().clamp(min=0, max=log_p.shape[-1] - 1)
        picked = log_p.gather(-1, labels[..., None]).squeeze(-1)
        value = -picked
        if label_smoothing:
            value = _smoothed(log_p, labels, label_smoothing, label_smoothing_gaussian)
            if label_smoothing_gaussian:
                scores = log_p if logits is None else logits.expanded([*rest, output.feature])
                value = value + _gradient_of_whole_targets(scores, labels, 1.0 - label_smoothing)
        if focal_loss_factor:
            value = value * (1.0 - picked.exp()) ** focal_loss_factor
    if fake_upper_bound is not None:
        value = value + (value.clamp(max=fake_upper_bound) - value).detach()
    total = sum_frames(NamedTensor(value, tuple(rest)))
    return LossValue(total, _frame_error(output, target))


def _class_log_probs(output: NamedTensor, logits: NamedTensor | None, rest: list[Axis], eps: float) -> Tensor:
    assert output.feature is not None
    if logits is not None and logits.feature is not None:
        return torch.log_softmax(logits.expanded([*rest, logits.feature]), -1)
    return safe_log(output.expanded([*rest, output.feature]), eps)


def _smoothed(log_p: Tensor, labels: Tensor, smoothing: float, gaussian: bool) -> Tensor:
    """Cross entropy to the smoothed target, minus that target's entropy (so that the optimum is 0)."""
    size = log_p.shape[-1]
    confidence = 1.0 - smoothing
    low = smoothing / (size - 1)
    constant = -(confidence * math.log(confidence) + (size - 1) * low * math.log(low + 1e-20))
    if gaussian:
        return -(_bell(labels, size, confidence, log_p) * log_p).sum(-1) - constant
    picked = log_p.gather(-1, labels[..., None]).squeeze(-1)
    return -(confidence * picked + low * (log_p.sum(-1) - picked)) - constant


def _bell(labels: Tensor, size: int, std: float, like: Tensor) -> Tensor:
    """A normal distribution around the label, over all classes."""
    distance = (torch.arange(size, device=like.device, dtype=like.dtype) - labels[..., None]) / std
    return torch.exp(-0.5 * distance.square()) / (std * math.sqrt(2 * math.pi))


def _gradient_of_whole_targets(scores: Tensor, labels: Tensor, std: float) -> Tensor:
    """Zero, with a gradient: the bell does not sum to 1, but TensorFlow gives softmax - target as if it did."""
    missing = 1.0 - _bell(labels, scores.shape[-1], std, scores).sum(-1)
    total = torch.logsumexp(scores, -1)
    return missing * (total - total.detach())


@register_loss("sampling_loss")
def sampling_loss(
    data: LossInput,
    *,
    num_sampled: int = 128,
    num_splits: int = 1,
    sampler: str = "log_uniform",
    nce_loss: bool = False,
    use_full_softmax: bool = False,
    remove_accidental_hits: bool | None = None,
    sampler_args: dict[str, Any] | None = None,
    nce_log_norm_term: float = 0.0,
) -> LossValue:
    """Cross entropy over the label and a sample of the other classes; the layer needs `use_transposed_weights`."""
    if use_full_softmax:
        return cross_entropy(data)
    if sampler not in ("uniform", "log_uniform") or sampler_args:
        raise data.call.error(f"sampler {sampler!r} with {sampler_args} is not supported; nearest: 'log_uniform'")
    if not data.call.options.get("use_transposed_weights"):
        raise data.call.error("loss 'sampling_loss' needs the option 'use_transposed_weights' on the layer")
    output, target = _paired(data)
    x, classes = data.call.x, data.call.feature(output)
    size_in = data.call.feature(x)
    rest = [axis for axis in output.axes if axis is not output.feature]
    parts = []
    labels = target.expanded(rest).long().reshape(-1)
    inputs = x.expanded([*rest, size_in]).reshape(-1, size_in.size)
    weight = data.call.param("W", (classes.size, size_in.size))
    bias = data.call.param("b", (classes.size,))
    for chosen, frames in zip(labels.chunk(num_splits), inputs.chunk(num_splits), strict=True):
        parts.append(
            sampled_loss(
                frames,
                chosen,
                weight,
                bias,
                num_sampled=num_sampled,
                sampler=sampler,
                nce=nce_loss,
                remove_accidental_hits=not nce_loss if remove_accidental_hits is None else remove_accidental_hits,
                log_norm_term=nce_log_norm_term,
            )
        )
    values = torch.cat(parts).reshape([axis.size for axis in rest])
    return LossValue(sum_frames(NamedTensor(values, tuple(rest))), _frame_error(output, target))


@register_loss("mse")
def mean_squared_error(data: LossInput) -> LossValue:
    """Mean over the features of (output - target)^2; class indices become one-hot."""
    output, target = _paired(data)
    return _distance(data, output, target, lambda x, y: (x - y).square())


@register_loss("mean_l1")
def mean_l1(data: LossInput) -> LossValue:
    """Mean over the features of |output - target|."""
    output, target = _paired(data)
    return _distance(data, output, target, lambda x, y: (x - y).abs())


@register_loss("l1")
def sum_l1(data: LossInput) -> LossValue:
    """Sum over the features of |output - target|."""
    output, target = _paired(data)
    return _distance(data, output, target, lambda x, y: (x - y).abs(), mean=False)


def _distance(
    data: LossInput,
    output: NamedTensor,
    target: NamedTensor,
    function: Callable[[Tensor, Tensor], Tensor],
    mean: bool = True,
) -> LossValue:
    if output.feature is None:
        values = function(output.raw, target.expanded(output.axes).to(output.raw.dtype))
        return LossValue(sum_frames(NamedTensor(values, output.axes)))
    rest = [axis for axis in output.axes if axis is not output.feature]
    if target.feature is None:
        dense = F.one_hot(target.expanded(rest).long(), output.feature.size).to(output.raw.dtype)
    else:
        dense = target.expanded([*rest, target.feature])
    values = function(output.expanded([*rest, output.feature]), dense)
    values = values.mean(-1) if mean else values.sum(-1)
    return LossValue(sum_frames(NamedTensor(values, tuple(rest))), _frame_error(output, target))


@register_loss("generic_ce")
def generic_cross_entropy(data: LossInput) -> LossValue:
    """-log of the normalised output at the target, for elementwise activations such as exp and sigmoid.

    The gradient of the activation's input z is (d log y / d z) (y / sum(y) - target), whatever the activation: that
    of a softmax for exp.
    """
    output, target = _paired(data)
    before = output.before_activation
    if before is None or output.feature is None or target.feature is not None:
        raise data.call.error("loss 'generic_ce' needs an elementwise activation, and class indices as target")
    rest = [axis for axis in output.axes if axis is not output.feature]
    axes = [*rest, output.feature]
    z, y = before[1].ordered(axes).raw, output.ordered(axes).raw
    normed = (y / y.sum(-1, keepdim=True)).detach()
    labels = target.expanded(rest).long()
    with torch.enable_grad():
        inner = before[1].ordered(axes).raw.detach().requires_grad_()
        logs = activate(before[1].ordered(axes).like(inner), before[0], data.call.path).raw.log()
        (slope,) = torch.autograd.grad(logs.sum(), inner)
    signal = slope * (normed - F.one_hot(labels, output.feature.size))
    values = -normed.clamp(1e-20, 1e20).log().gather(-1, labels[..., None]).squeeze(-1)
    carrier = sum_frames(NamedTensor((z * signal).sum(-1), tuple(rest)))  # its gradient with respect to z is the signal
    total = carrier - carrier.detach() + sum_frames(NamedTensor(values, tuple(rest)))
    return LossValue(total, _frame_error(output, target))


@register_loss("bin_ce")
@register_loss("sse_sigmoid")
def binary_cross_entropy(data: LossInput, *, pos_weight: float | None = None) -> LossValue:
    """Sigmoid cross entropy from logits, mean over the features."""
    output, target = _paired(data)
    weight = None if pos_weight is None else torch.tensor(pos_weight, device=output.raw.device)
    reference = target.expanded(output.axes).to(output.raw.dtype)
    values = F.binary_cross_entropy_with_logits(output.raw, reference, reduction="none", pos_weight=weight)
    total = sum_frames(NamedTensor(values, output.axes))
    if output.feature is None:
        return LossValue(total)
    wrong = (output.raw > 0) != (reference > 0.5)  # per feature, of the logits
    error = sum_frames(NamedTensor(wrong, output.axes))
    return LossValue(total / output.feature.size, error / output.feature.size)


@register_loss("as_is")
def as_is(data: LossInput, *, as_error: bool = False) -> LossValue:
    """The sum of the output itself."""
    total = sum_frames(data.output)
    return LossValue(None, total) if as_error else LossValue(total)
