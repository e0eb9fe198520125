"""Affine layers.

Legend: F input features, G outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from returnn_hydra.network.activations import activate
from returnn_hydra.network.call import LayerCall
from returnn_hydra.network.layers.gradients import without_large_gradients
from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.network.registry import register_layer


def affine(call: LayerCall, x: NamedTensor, size: int, weight: torch.Tensor, bias: torch.Tensor | None) -> NamedTensor:
    """x W + b over the feature axis; class indices select rows of W."""
    feature = call.new_feature(size)
    if x.feature is None:
        if x.sparse_dim is None:
            raise call.error(f"needs features or class indices, but the input has {list(x.axes)}")
        # indices outside of the vocabulary (an EOS behind the classes, a padding) take the nearest row
        raw = F.embedding(x.raw.long().clamp(0, weight.shape[0] - 1), weight)
        raw = raw if bias is None else raw + bias
        return x.dense(raw, (*x.axes, feature), feature=feature)
    rest = [axis for axis in x.axes if axis is not x.feature]
    raw = F.linear(x.expanded([*rest, x.feature]), weight.t(), bias)
    y = x.dense(raw, (*rest, feature), feature=feature, time=x.time)
    return y.ordered([feature if axis is x.feature else axis for axis in x.axes])


@register_layer("linear", "hidden", "forward", framewise=True)
def linear(
    call: LayerCall,
    *,
    activation: Any = None,
    with_bias: bool = True,
    grad_filter: float | None = None,
    forward_weights_init: Any = "glorot_uniform",
    bias_init: Any = 0.0,
    use_transposed_weights: bool = False,
) -> NamedTensor:
    """activation(x W + b)."""
    x = call.x
    size_in = x.dim
    if size_in is None:
        raise call.error(f"needs features or class indices, but the input has {list(x.axes)}")
    size = call.need_n_out()
    shape = (size, size_in) if use_transposed_weights else (size_in, size)
    blocks = [[source.dim or 0 for source in call.sources], [size]]
    weight = call.param("W", shape, forward_weights_init, blocks=blocks[::-1] if use_transposed_weights else blocks)
    bias = call.param("b", (size,), bias_init) if with_bias else None
    y = affine(call, x, size, weight.t() if use_transposed_weights else weight, bias)
    if grad_filter:
        y = without_large_gradients(y, grad_filter)
    return activate(y, activation, call.path)


@register_layer("softmax", framewise=True)
def softmax(
    call: LayerCall,
    *,
    activation: Any = "softmax",
    with_bias: bool = True,
    grad_filter: float | None = None,
    forward_weights_init: Any = "glorot_uniform",
    bias_init: Any = 0.0,
    use_transposed_weights: bool = False,
) -> NamedTensor:
    """A linear layer with softmax."""
    return linear(
        call,
        activation=activation,
        with_bias=with_bias,
        grad_filter=grad_filter,
        forward_weights_init=forward_weights_init,
        bias_init=bias_init,
        use_transposed_weights=use_transposed_weights,
    )
