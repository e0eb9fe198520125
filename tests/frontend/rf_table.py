"""Calls of rf functions, run by RETURNN and by this project alike: `python rf_table.py OUT.npz` writes what they give.

B batch of 3, T dynamic time, F feature of 4, C 5 classes. Every case gets fresh tensors; its outputs are summed with
fixed weights for the gradients. Padding is set to 0 and axes are sorted by name, the batch first, before anything is
compared.
"""

import sys

import numpy as np
import returnn.frontend as rf
import torch
from returnn.tensor import Dim, Tensor, batch_dim

LENGTHS = [5, 3, 4]
UNARY = (
    "abs ceil cos exp expm1 floor gelu log_sigmoid neg relu relu_square round selu sigmoid silu sin square swish tanh"
).split()


class Inputs:
    """Fresh tensors of one case."""

    def __init__(self):
        rng = np.random.RandomState(3)
        batch_dim.dyn_size_ext = Tensor("batch", dims=[], dtype="int32", raw_tensor=torch.tensor(3, dtype=torch.int32))
        sizes = torch.tensor(LENGTHS, dtype=torch.int32)
        self.t = Dim(Tensor("t", dims=[batch_dim], dtype="int32", raw_tensor=sizes), name="time")
        self.f, self.c, self.g = Dim(4, name="feat"), Dim(5, name="classes"), Dim(4, name="other")
        self.x = self._floats("x", [batch_dim, self.t, self.f], rng.randn(3, 5, 4), self.f)
        self.y = self._floats("y", [batch_dim, self.t, self.f], rng.randn(3, 5, 4), self.f)
        self.p = self._floats("p", [batch_dim, self.t, self.f], rng.rand(3, 5, 4) + 0.5, self.f)
        self.w = self._floats("w", [self.f, self.c], rng.randn(4, 5), self.c)
        self.v = self._floats("v", [batch_dim, self.f], rng.randn(3, 4), self.f)
        self.labels = self._ints("labels", [batch_dim, self.t], rng.randint(0, 4, (3, 5)), self.f)
        self.index = self._ints("index", [batch_dim], np.array([1, 2, 0]), self.t)
        self.one = Dim(1, name="one")
        self.to_classes = self._ints("to_classes", [batch_dim, self.t], rng.randint(0, 5, (3, 5)), self.c)
        sizes = torch.tensor([2, 1, 1], dtype=torch.int32)
        self.u = Dim(Tensor("u", dims=[batch_dim], dtype="int32", raw_tensor=sizes), name="target")
        self.targets = self._ints("targets", [batch_dim, self.u], np.array([[0, 2], [3, 0], [1, 0]]), self.f)
        self.mask = Tensor("mask", dims=[batch_dim, self.t], dtype="bool")
        self.mask.raw_tensor = torch.tensor(rng.rand(3, 5) > 0.4)

    def _floats(self, name, dims, values, feature_dim):
        raw = torch.tensor(values, dtype=torch.float32, requires_grad=True)
        return Tensor(name, dims=dims, dtype="float32", raw_tensor=raw, feature_dim=feature_dim)

    def _ints(self, name, dims, values, sparse_dim):
        raw = torch.tensor(values, dtype=torch.int32)
        return Tensor(name, dims=dims, dtype="int32", raw_tensor=raw, sparse_dim=sparse_dim)


def _logits(i):
    logits = rf.matmul(i.x, i.w, reduce=i.f)
    logits.feature_dim = i.c
    return logits


def _single(tensor, i):
    return rf.reduce_max(tensor, axis=i.f)


def _first(i):
    """True for the first two sequences."""
    return rf.range_over_dim(batch_dim) < 2


def _longer(i):
    """The second tensor with one more frame, and its dim."""
    value = rf.zeros((), dtype="float32")
    longer, (dim,) = rf.pad(i.y, axes=[i.t], padding=[(1, 0)], value=value, handle_dynamic_dims=True)
    return longer, dim


def _named(tensor, dim):
    """The dim under a name that does not depend on how it was made."""
    return rf.replace_dim(tensor, in_dim=dim, out_dim=Dim(dim.get_size_tensor(), name="z"))[0]


def _select_and_scatter(i):
    mask = _first(i)
    chosen, packed, dims = rf.nested.masked_select_nested((i.x, i.t), mask=mask, mask_cpu=mask, dims=[batch_dim])
    options = {"mask": mask, "mask_cpu": mask, "dims": [batch_dim], "in_dim": packed, "masked_select_dim_map": dims}
    return rf.nested.masked_scatter_nested(chosen, _longer(i), **options)


def _renamed(i):
    keys, i.kv = rf.replace_dim(i.y, in_dim=i.t)
    return keys, rf.replace_dim(i.p, in_dim=i.t, out_dim=i.kv)[0]


def _attention_after_state(i):
    """The second half of a sequence in one piece, with the first half as state."""
    rf.set_random_seed(7)
    module = rf.CausalSelfAttention(i.f, None, key_dim_total=i.f, value_dim_total=i.f, num_heads=2)
    _, state = module(i.x, axis=i.t)
    second, _ = rf.gather(i.y, indices=rf.range_over_dim(i.u), axis=i.t), i.u
    return rf.stop_gradient(module(second, axis=i.u, state=state)[0])  # RETURNN's gradient is nan in padding


def _conv(i):
    size = Dim(2, name="size")
    weights = rf.reshape(i.w, in_dims=[i.c], out_dims=[i.c]) * rf.range_over_dim(size, dtype="float32")
    options = {"in_dim": i.f, "out_dim": i.c, "in_spatial_dims": [i.t], "filter_size": [size], "padding": "same"}
    return rf.conv(i.x, filter=weights.copy_transpose([size, i.f, i.c]), **options)[0]


def _scan_with_beams(i):
    """A loop whose state gets another dim in every step."""

    def body(x, state):
        beam = Dim(2, name="beam")
        new = rf.combine_bc(state["y"] + x, "mul", rf.range_over_dim(beam, dtype="float32") + 1.0)
        new = rf.reduce_mean(new, axis=state["beam"])
        return new, {"y": new, "beam": beam}

    first = Dim(1, name="first")
    initial = {"y": rf.zeros([batch_dim, first, i.f]), "beam": first}
    template = Tensor("y", dims=[batch_dim, first, i.f], dtype="float32")
    frames, _, _ = rf.scan(spatial_dim=i.t, body=body, initial=initial, xs=i.x, ys=template, return_tensor_arrays=True)
    return frames[-1]


def _with_weight_dropout(make, call):
    """A module in training, all of whose parameters are drawn for in every reading."""
    rf.set_random_seed(5)
    module = make()
    for part in list(module.modules()):
        for name, parameter in list(part.named_parameters(recurse=False)):
            if not parameter.auxiliary:
                rf.weight_dropout(part, name, drop_prob=0.3)
    torch.manual_seed(3)
    with rf.get_run_ctx().train_flag_ctx(True):
        return call(module)


def _lstm(i):
    def call(module):
        return module(i.x, state=module.default_initial_state(batch_dims=[batch_dim]), spatial_dim=i.t)[0]

    return _with_weight_dropout(lambda: rf.LSTM(i.f, i.c), call)


CASES = {name: (lambda i, name=name: getattr(rf, name)(i.x)) for name in UNARY}
CASES |= {
    name: (lambda i, name=name: getattr(rf, name)(i.p))
    for name in ("log", "log1p", "rsqrt", "sqrt", "reciprocal", "safe_log")
}
CASES |= {
    f"{name}_{axis}": (lambda i, name=name, axis=axis: getattr(rf, name)(i.x, axis=getattr(i, axis)))
    for name in (
        "reduce_sum",
        "reduce_max",
        "reduce_min",
        "reduce_mean",
        "reduce_logsumexp",
        "reduce_argmax",
        "reduce_argmin",
    )
    for axis in "tf"
}
CASES |= {
    f"{name}_{axis}": (lambda i, name=name, axis=axis: getattr(rf, name)(i.x, axis=getattr(i, axis)))
    for name in ("softmax", "log_softmax")
    for axis in "tf"
}
CASES |= {
    name: (lambda i, name=name: getattr(rf, name)(i.x, i.y))
    for name in (
        "maximum",
        "minimum",
        "squared_difference",
        "log_add_exp",
        "less",
        "less_equal",
        "greater",
        "equal",
        "not_equal",
    )
}
CASES |= {
    "add": lambda i: i.x + i.v,
    "mul": lambda i: i.x * i.v,
    "sub": lambda i: i.v - i.x,
    "truediv": lambda i: i.x / i.p,
    "pow": lambda i: rf.pow(i.p, 3),
    "matmul": lambda i: rf.matmul(i.x, i.w, reduce=i.f),
    "dot": lambda i: rf.dot(i.x, i.v, reduce=i.f),
    "reduce_any": lambda i: rf.reduce_any(i.mask, axis=i.t),
    "reduce_all": lambda i: rf.reduce_all(i.mask, axis=i.t),
    "reduce_sum_both": lambda i: rf.reduce_sum(i.x, axis=[batch_dim, i.t]),
    "reduce_mean_unmasked": lambda i: rf.reduce_mean(i.x, axis=i.t, use_mask=False),
    "moments_mean": lambda i: rf.moments(i.x, i.t)[0],
    "moments_variance": lambda i: rf.moments(i.x, i.t)[1],
    "normalize": lambda i: rf.normalize(i.x, axis=i.t),
    "cumsum": lambda i: rf.cumsum(i.x, spatial_dim=i.t),
    "where": lambda i: rf.where(i.mask, i.x, i.y),
    "gather": lambda i: rf.gather(i.x, indices=i.index, axis=i.t),
    "gather_labels": lambda i: rf.gather(i.x, indices=i.labels, axis=i.f),
    "one_hot": lambda i: rf.one_hot(i.labels),
    "sparse_to_dense": lambda i: rf.sparse_to_dense(i.labels, label_value=0.9, other_value=0.1),
    "cast": lambda i: rf.cast(i.labels, "float32"),
    "clip_by_value": lambda i: rf.clip_by_value(i.x, -0.5, 0.5),
    "stop_gradient": lambda i: rf.stop_gradient(i.x) * i.y,
    "scaled_gradient": lambda i: rf.scaled_gradient(i.x, 0.3),
    "label_smoothing": lambda i: rf.label_smoothing(rf.one_hot(i.labels), 0.1, axis=i.f),
    "label_smoothed_log_prob_gradient": lambda i: rf.label_smoothed_log_prob_gradient(
        rf.log_softmax(i.x, axis=i.f), 0.1, axis=i.f
    ),
    "cross_entropy": lambda i: rf.cross_entropy(estimated=i.x, estimated_type="logits", target=i.labels, axis=i.f),
    "cross_entropy_dense": lambda i: rf.cross_entropy(
        estimated=i.x, estimated_type="logits", target=rf.softmax(i.y, axis=i.f), axis=i.f
    ),
    "concat": lambda i: rf.concat((i.x, i.f), (i.y, i.f))[0],
    "concat_features": lambda i: rf.concat_features(i.x, i.y),
    "split": lambda i: rf.split(i.x, axis=i.f, out_dims=[Dim(1, name="a"), Dim(3, name="b")])[1],
    "pad": lambda i: rf.pad(i.x, axes=[i.t], padding=[(1, 2)], value=0.5)[0],
    "slice": lambda i: rf.slice(i.x, axis=i.f, start=1, end=3)[0],
    "shift_right": lambda i: rf.shift_right(i.x, axis=i.t, pad_value=0.0),
    "reverse_sequence": lambda i: rf.reverse_sequence(i.x, axis=i.t),
    "expand_dim": lambda i: rf.expand_dim(i.v, i.c),
    "squeeze": lambda i: rf.squeeze(rf.expand_dim(i.v, i.one), axis=i.one),
    "merge_dims": lambda i: rf.merge_dims(
        rf.matmul(i.x, i.w, reduce=i.f) * i.v, dims=[i.f, i.c], out_dim=Dim(20, name="merged")
    )[0],
    "split_dims": lambda i: rf.split_dims(i.x, axis=i.f, dims=[Dim(2, name="u"), Dim(2, name="z")]),
    "stack": lambda i: rf.stack([i.x, i.y], out_dim=Dim(2, name="stacked"))[0],
    "top_k": lambda i: rf.top_k(i.x, axis=i.f, k_dim=Dim(2, name="k"))[0],
    "sort": lambda i: rf.sort(i.x, axis=i.f)[0],
    "window": lambda i: rf.window(i.x, spatial_dim=i.t, window_dim=Dim(3, name="win"))[0],
    "masked_select": lambda i: rf.masked_select(i.x, mask=i.mask, dims=[batch_dim, i.t])[0],
    "pack_padded": lambda i: rf.pack_padded(i.x, dims=[batch_dim, i.t], enforce_sorted=False)[0],
    "sequence_mask": lambda i: i.t.get_mask(),
    "range_over_dim": lambda i: rf.range_over_dim(i.t),
    "scatter": lambda i: rf.scatter(i.x, indices=i.to_classes, indices_dim=i.t),
    "scatter_max": lambda i: rf.scatter(i.x, indices=i.to_classes, indices_dim=i.t, mode="max", fill_value=-2.0),
    "scatter_filled": lambda i: rf.scatter(i.x, indices=i.to_classes, indices_dim=[batch_dim, i.t], fill_value=0.5),
    "scatter_mean": lambda i: rf.scatter_mean(i.x, indices=i.to_classes, indices_dim=i.t, fill_value=3.0),
    "scatter_logsumexp": lambda i: rf.exp(rf.scatter_logsumexp(i.x, indices=i.to_classes, indices_dim=i.t)),
    "scatter_argmax": lambda i: rf.scatter(_single(i.x, i), indices=i.to_classes, indices_dim=i.t, mode="argmax"),
    "search_sorted": lambda i: rf.search_sorted(rf.range_over_dim(i.f, dtype="float32"), i.x, axis=i.f),
    "search_sorted_scalar": lambda i: rf.search_sorted(
        rf.range_over_dim(i.f, dtype="float32"), rf.constant(1.5, dims=()), axis=i.f
    ),
    "replace_dim_v2": lambda i: _named(rf.replace_dim_v2(i.x, in_dim=i.t, out_dim=i.t + 2), i.t + 2),
    "where_nested": lambda i: _named(*rf.nested.where_nested((i.x, i.t), _longer(i), condition=_first(i))),
    "mask_nested": lambda i: _named(*rf.nested.mask_nested((i.x, i.t), mask=_first(i), mask_value=_longer(i))),
    "masked_scatter_nested": lambda i: _named(*_select_and_scatter(i)),
    "gather_nested": lambda i: _named(
        *rf.nested.gather_nested(
            (i.x, i.t), indices=rf.convert_to_tensor([2, 1], dims=[Dim(2, name="chosen")], sparse_dim=batch_dim)
        )
    ),
    "causal_attention": lambda i: rf.dot_attention(
        i.x, *_renamed(i), key_dim=i.f, axis=i.kv, causal_query_spatial_dim=i.t
    ),
    "causal_attention_after_state": lambda i: _attention_after_state(i),
    "self_attention_same_axis": lambda i: rf.dot_attention(i.x, i.y, i.p, key_dim=i.f, axis=i.t),
    "conv_other_order": lambda i: _conv(i),
    "weight_dropout_linear": lambda i: _with_weight_dropout(lambda: rf.Linear(i.f, i.c), lambda m: m(i.x)),
    "weight_dropout_norm": lambda i: _with_weight_dropout(lambda: rf.BatchNorm(i.f), lambda m: m(i.x)),
    "weight_dropout_attention": lambda i: _with_weight_dropout(
        lambda: rf.RelPosSelfAttention(i.f, i.f, key_dim_total=i.f, value_dim_total=i.f, num_heads=2),
        lambda m: m(i.x, axis=i.t),
    ),
    "weight_dropout_learned_positions": lambda i: _with_weight_dropout(
        lambda: rf.RelPosSelfAttention(
            i.f, i.f, key_dim_total=i.f, value_dim_total=i.f, num_heads=2, learnable_pos_emb=True
        ),
        lambda m: m(i.x, axis=i.t),
    ),
    "weight_dropout_lstm": lambda i: _lstm(i),
    "piecewise_linear": lambda i: rf.PiecewiseLinear({-1: 0.0, 0.5: 2.0, 2: 1.0})(i.x),
    "scan_other_dims": lambda i: _scan_with_beams(i),
    "ctc_loss": lambda i: rf.ctc_loss(
        logits=_logits(i),
        targets=i.targets,
        input_spatial_dim=i.t,
        targets_spatial_dim=i.u,
        blank_index=4,
    ),
    "gating": lambda i: rf.gating(i.x)[0],
    "pool1d": lambda i: rf.pool1d(i.x, mode="max", pool_size=2, padding="same", in_spatial_dim=i.t)[0],
    "constant": lambda i: rf.constant(2.5, dims=[batch_dim, i.t]),
    "logical_and": lambda i: rf.logical_and(i.mask, rf.logical_not(i.mask)),
    "edit_distance": lambda i: rf.edit_distance(i.labels, i.t, i.labels, i.t),
}


def numbers(tensor):
    """Without padding, axes sorted by name, the batch first, as float64."""
    dims = sorted(tensor.dims, key=lambda dim: (not dim.is_batch_dim(), dim.name))
    tensor = rf.cast(tensor, "float32").copy_masked(0.0)
    return tensor.copy_transpose(dims).raw_tensor.detach().numpy().astype("float64")


def run():
    """{"case:output" or "case:x" (its gradient): array}; a case that fails: {"case:error": text}."""
    rf.select_backend_torch()
    rf.init_train_step_run_ctx(train_flag=False)
    results = {}
    for name, case in CASES.items():
        inputs = Inputs()
        try:
            output = case(inputs)
            results[f"{name}:output"] = values = numbers(output)
            if output.raw_tensor.requires_grad:
                weights = torch.tensor(np.random.RandomState(5).rand(*values.shape), dtype=torch.float32)
                dims = sorted(output.dims, key=lambda dim: (not dim.is_batch_dim(), dim.name))
                (output.copy_masked(0.0).copy_transpose(dims).raw_tensor * weights).sum().backward()
        except Exception as error:
            results[f"{name}:error"] = np.array(f"{type(error).__name__}: {error}"[:300])
            continue
        for key in "xypwv":
            gradient = getattr(inputs, key).raw_tensor.grad
            if gradient is not None:
                results[f"{name}:{key}"] = gradient.numpy().astype("float64")
    return results


if __name__ == "__main__":
    np.savez(sys.argv[1], **run())
