"""Cases without recorded values, against formulas written with numpy, one sequence at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

Array = np.ndarray
Reference = Callable[[Array, Array, Callable[..., Array]], Array]
"""(features of one sequence (T, 5), its labels (S,), parameter by name and shape) -> output (T', ...)."""


def affine(x: Array, p: Callable[..., Array], name: str, size: int) -> Array:
    return x @ p(f"{name}/W", x.shape[-1], size) + p(f"{name}/b", size)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array, axis: int = -1) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def linear(function: Callable[[Array], Array]) -> Reference:
    return lambda x, y, p: function(affine(x, p, "l", 4))


def other(x: Array, p: Callable[..., Array], function: Callable[[Array], Array] = np.tanh, name: str = "b") -> Array:
    return function(affine(x, p, name, 5))


def combined(function: Callable[[Array, Array], Array]) -> Reference:
    return lambda x, y, p: function(x, other(x, p, sigmoid))


def conv1d(x: Array, w: Array, bias: Array, dilation: int = 1) -> Array:
    """Same padding, stride 1."""
    size = w.shape[0]
    left = (size - 1) * dilation // 2
    padded = np.pad(x, ((left, (size - 1) * dilation - left), (0, 0)))
    return np.stack([sum(padded[t + k * dilation] @ w[k] for k in range(size)) for t in range(len(x))]) + bias


def conv2d(x: Array, w: Array, bias: Array) -> Array:
    """(T, F) -> (T, F, D), same padding."""
    padded = np.pad(x, ((1, 1), (1, 1)))
    out = np.zeros((*x.shape, w.shape[-1]))
    for i in range(3):
        for j in range(3):
            out += padded[i : i + x.shape[0], j : j + x.shape[1], None] * w[i, j, 0]
    return out + bias


def lstm(x: Array, p: Callable[..., Array], size: int, path: str = "l") -> tuple[Array, Array, Array]:
    w, r, b = (
        p(f"{path}/rec/W", x.shape[1], 4 * size),
        p(f"{path}/rec/W_re", size, 4 * size),
        p(f"{path}/rec/b", 4 * size),
    )
    h = c = np.zeros(size)
    out = []
    for frame in x:
        z, i, f, o = np.split(frame @ w + h @ r + b, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(z)
        h = sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.stack(out), h, c


def layer_norm(x: Array, gamma: Array, beta: Array | float = 0.0) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * gamma + beta


def layer_norm_lstm(x: Array, p: Callable[..., Array]) -> Array:
    n = 4
    h = c = np.zeros(n)
    out = []
    for frame in x:
        below = layer_norm(
            frame @ p("l/rec/W_ff", 5, 16), p("l/rec/gamma_input_below", 16), p("l/rec/beta_input_below", 16)
        )
        re = layer_norm(h @ p("l/rec/W_re", 4, 16), p("l/rec/gamma_state_below", 16))
        i, j, f, o = np.split(below + re, 4)
        c = layer_norm(sigmoid(f) * c + sigmoid(i) * np.tanh(j), p("l/rec/gamma_new_c", n), p("l/rec/beta_new_c", n))
        h = sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.stack(out)


def zoneout(x: Array, p: Callable[..., Array]) -> Array:
    k, b = p("l/rec/lstm_cell/kernel", 9, 16), p("l/rec/lstm_cell/bias", 16)
    h = c = np.zeros(4)
    out = []
    for frame in x:
        i, j, f, o = np.split(np.concatenate([frame, h]) @ k + b, 4)
        new_c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(j)
        new_h = sigmoid(o) * np.tanh(new_c)
        out.append(new_h)
        c, h = 0.85 * new_c + 0.15 * c, 0.95 * new_h + 0.05 * h
    return np.stack(out)


def self_attention(x: Array, p: Callable[..., Array], causal: bool) -> Array:
    joined = (x @ p("l/QKV", 5, 14)).reshape(len(x), 2, 7)
    q, k, v = joined[..., :2], joined[..., 2:4], joined[..., 4:]
    out = []
    for head in range(2):
        energy = q[:, head] @ k[:, head].T / math.sqrt(2)
        if causal:
            energy = np.where(np.tril(np.ones_like(energy)) > 0, energy, -np.inf)
        out.append(softmax(energy) @ v[:, head])
    return np.concatenate(out, -1)


def sinusoid(count: int, size: int) -> Array:
    half = size // 2
    rates = 10000.0 ** (-np.arange(half) / max(half - 1, 1))
    angle = np.arange(count)[:, None] * rates
    return np.concatenate([np.sin(angle), np.cos(angle)], 1)


def transposed(x: Array, p: Callable[..., Array]) -> Array:
    w, b = p("l/W_native_transposed_conv", 3, 1, 4, 5), p("l/bias", 4)
    return np.maximum(np.concatenate([np.stack([w[k, 0] @ frame for k in range(3)]) for frame in x]) + b, 0)


def windows(x: Array, size: int, left: int, stride: int = 1) -> Array:
    padded = np.pad(x, ((left, size - left - 1), (0, 0)))
    return np.stack([padded[t : t + size] for t in range(0, len(x), stride)])


def strided_conv2d(x: Array, p: Callable[..., Array]) -> Array:
    w, b = p("l/W", 3, 3, 1, 3), p("l/bias", 3)
    rows = range(0, len(x) - 2, 2)
    return (
        np.stack(
            [[np.einsum("ij,ijd->d", x[t : t + 3, f : f + 3], w[:, :, 0]) for f in range(3)] for t in rows]
        ).reshape(len(rows), 3, 3)
        + b
    )


def recurrent_sum(x: Array) -> Array:
    return 1.0 + np.cumsum(x, 0)


REFERENCES: dict[str, Reference] = {
    "linear_relu": linear(lambda z: np.maximum(z, 0)),
    "linear_sigmoid": linear(sigmoid),
    "linear_exp": linear(np.exp),
    "linear_elu": linear(lambda z: np.where(z > 0, z, np.exp(z) - 1)),
    "linear_softplus": linear(lambda z: np.log1p(np.exp(z))),
    "linear_log_sigmoid": linear(lambda z: -np.log1p(np.exp(-z))),
    "linear_nobias": lambda x, y, p: x @ p("l/W", 5, 4),
    "linear_sparse_in": lambda x, y, p: p("l/W", 7, 4)[y],
    "linear_multi_from": lambda x, y, p: affine(np.concatenate([x, np.tanh(affine(x, p, "b", 3))], 1), p, "l", 4),
    "linear_reuse": lambda x, y, p: affine(np.tanh(affine(x, p, "a", 5)), p, "a", 5),
    "activation": lambda x, y, p: np.maximum(x, 0),
    "combine_add": combined(np.add),
    "combine_mul": combined(np.multiply),
    "combine_average": combined(lambda a, b: (a + b) / 2),
    "combine_truediv": combined(np.divide),
    "combine_minimum": combined(np.minimum),
    "eval_4": lambda x, y, p: np.clip(x, -0.5, 0.3),
    "eval_5": lambda x, y, p: (x - other(x, p)) / (other(x, p, sigmoid, "c") + 3),
    "eval_6": lambda x, y, p: np.exp(x),
    "eval_7": lambda x, y, p: np.log(np.maximum(np.maximum(x, 0), 1e-20)),
    "eval_10": lambda x, y, p: x + other(x, p) * other(x, p, sigmoid, "c"),
    "eval_11": lambda x, y, p: x - 1,
    "eval_12": lambda x, y, p: np.maximum(x, other(x, p)),
    "eval_13": lambda x, y, p: (x >= other(x, p)).astype("float32"),
    "eval_int": lambda x, y, p: np.minimum(y, 4),
    "compare_less": lambda x, y, p: y < 3,
    "compare_greater_equal": lambda x, y, p: y >= 3,
    "compare_two": lambda x, y, p: x < other(x, p),
    "gating_tanh": lambda x, y, p: np.tanh(affine(x, p, "a", 8)[:, :4]) * sigmoid(affine(x, p, "a", 8)[:, 4:]),
    "reduce_out": lambda x, y, p: affine(x, p, "a", 8).reshape(-1, 4, 2).max(-1),
    "reduce_min_T": lambda x, y, p: x.min(0),
    "reduce_logsumexp_F": lambda x, y, p: np.log(np.exp(x).sum(-1)),
    "reduce_argmax_F": lambda x, y, p: x.argmax(-1),
    "split_dims_m1": lambda x, y, p: affine(x, p, "a", 6).reshape(-1, 2, 3),
    "expand_dims": lambda x, y, p: x[:, None],
    "swap_axes": lambda x, y, p: affine(x, p, "a", 6).reshape(-1, 2, 3).transpose(0, 2, 1),
    "concat": lambda x, y, p: np.concatenate([x, affine(x, p, "b", 2)], 1),
    "transpose": lambda x, y, p: x.T,
    "slice_F": lambda x, y, p: x[:, 1:4],
    "slice_F_step": lambda x, y, p: x[:, ::2],
    "slice_T": lambda x, y, p: x[1:],
    "slice_T_end": lambda x, y, p: x[:-1],
    "slice_T_step": lambda x, y, p: x[::2],
    "gather_embed": lambda x, y, p: p("v/v", 7, 4)[y],
    "postfix_in_time_repeat": lambda x, y, p: np.pad(x, ((0, 2), (0, 0))),
    "window": lambda x, y, p: windows(x, 3, 1),
    "window_stride": lambda x, y, p: windows(x, 3, 1, 2),
    "window_merged": lambda x, y, p: windows(x, 3, 1).reshape(len(x), 15),
    "cumsum": lambda x, y, p: np.cumsum(x, 0),
    "dot_scalar": lambda x, y, p: (x * other(x, p)).sum(-1),
    "conv1d_same": lambda x, y, p: conv1d(x, p("l/W", 3, 5, 4), p("l/bias", 4)),
    "conv1d_dilated": lambda x, y, p: conv1d(x, p("l/W", 3, 5, 4), np.zeros(4), 2),
    "conv1d_depthwise": lambda x, y, p: conv1d(
        x, np.stack([np.diag(w) for w in p("l/W", 3, 1, 5)[:, 0]]), p("l/bias", 5)
    ),
    "conv2d": lambda x, y, p: conv2d(x, p("l/W", 3, 3, 1, 3), p("l/bias", 3)),
    "conv2d_pool_merge": lambda x, y, p: (
        np.pad(np.maximum(conv2d(x, p("c/W", 3, 3, 1, 3), p("c/bias", 3)), 0), ((0, 0), (0, 1), (0, 0)))
        .reshape(len(x), 3, 2, 3)
        .max(2)
        .reshape(len(x), 9)
    ),
    "conv2d_valid_stride": lambda x, y, p: strided_conv2d(x, p),
    "transposed_conv": lambda x, y, p: transposed(x, p),
    "rec_lstm_fw": lambda x, y, p: lstm(x, p, 4)[0],
    "rec_nativelstm_fw": lambda x, y, p: lstm(x, p, 4)[0],
    "rec_LSTMBlock_fw": lambda x, y, p: lstm(x, p, 4)[0],
    "rec_LSTMBlock_bw": lambda x, y, p: lstm(x[::-1], p, 4)[0][::-1],
    "rec_layernormvariantslstm_fw": lambda x, y, p: layer_norm_lstm(x, p),
    "rec_unit_opts_zoneout": lambda x, y, p: zoneout(x, p),
    "get_last_hidden_state_h": lambda x, y, p: lstm(x, p, 4, "r")[1],
    "self_attention_left0": lambda x, y, p: self_attention(x, p, False),
    "self_attention_left1": lambda x, y, p: self_attention(x, p, True),
    "positional_encoding": lambda x, y, p: sinusoid(len(x), 6),
    "positional_encoding_add": lambda x, y, p: affine(x, p, "a", 6) + sinusoid(len(x), 6),
    "softmax_over_spatial": lambda x, y, p: softmax(x, 0).T,
    "generic_attention_global": lambda x, y, p: softmax(np.tanh(affine(x, p, "k", 1)), 0)[:, 0] @ x,
    "subnetwork": lambda x, y, p: (
        affine(np.tanh(affine(x, p, "l/a", 4)), p, "l/b", 3)
        + affine(np.maximum(affine(x, p, "pre0", 2), 0), p, "l/c", 3)
    ),
    "recsub_initial": lambda x, y, p: recurrent_sum(x),
    "extra_deps_register": lambda x, y, p: affine(np.tanh(affine(x, p, "a", 4)), p, "output", 2),
}


def sequences(case: Any) -> list[tuple[Array, Array]]:
    lengths = {key: value.tolist() for key, value in case.batch.lengths.items()}
    return [
        (case.batch["data"][i, : lengths["data"][i]].numpy(), case.batch["classes"][i, : lengths["classes"][i]].numpy())
        for i in range(case.batch.num_seqs)
    ]


@pytest.mark.parametrize("name", REFERENCES)
def test_against_numpy(name: str, make_case: Any, cases: Any) -> None:
    case = make_case(name)
    value = case.run().outputs["output"].zero_padding().batch_major()

    def parameter(path: str, *shape: int) -> Array:
        assert tuple(case.model.parameter(path).shape) == shape
        return cases.fill(path, shape)

    for i, (x, y) in enumerate(sequences(case)):
        expected = np.asarray(REFERENCES[name](x, y, parameter))
        actual = value.raw[i].detach().numpy()
        cut = tuple(slice(0, size) for size in expected.shape)
        np.testing.assert_allclose(actual[cut], expected, rtol=1e-4, atol=1e-5)
        assert value.raw[i].dim() == expected.ndim


def test_shift_axis(make_case: Any) -> None:
    """One frame to the right; the length grows, as far as there is room."""
    case = make_case("shift_axis")
    value = case.run().outputs["output"].batch_major()
    assert value.time_axis.lengths.tolist() == [6, 5, 6]
    data = case.batch["data"]
    torch.testing.assert_close(value.raw, torch.cat([torch.zeros(3, 1, 5), data[:, :-1]], 1))


def test_range_constant_variable(make_case: Any, cases: Any) -> None:
    assert make_case("range").run().outputs["output"].raw.tolist() == [0, 1, 2, 3, 4]
    assert make_case("constant_batch").run().outputs["output"].raw.tolist() == [2, 2, 2]
    variable = make_case("variable").run().outputs["output"].raw.detach().numpy()
    np.testing.assert_allclose(variable, cases.fill("l/l", (3, 4)))


@pytest.mark.parametrize("kind", ["relative_positional_encoding", "relative_positional_encoding_fixed"])
def test_relative_positions(kind: str, make_case: Any, cases: Any) -> None:
    fixed = kind.endswith("fixed")
    clip = 16 if fixed else 2
    table = sinusoid(33, 4) if fixed else cases.fill("l/encoding_matrix", (5, 4))
    raw = make_case(kind).run().outputs["output"].raw.detach().numpy()
    for i in range(6):
        for j in range(6):
            np.testing.assert_allclose(raw[i, j], table[np.clip(j - i, -clip, clip) + clip], rtol=1e-5, atol=1e-6)


def test_max_pooling(make_case: Any) -> None:
    """Windows of two frames, stride two; and of three, stride one."""
    data = make_case("pool1d_max").batch["data"]
    two = make_case("pool1d_max").run().outputs["output"].batch_major().raw
    torch.testing.assert_close(two, torch.maximum(data[:, ::2], data[:, 1::2]))
    three = make_case("pool1d_stride").run().outputs["output"].batch_major().raw
    torch.testing.assert_close(three, torch.maximum(torch.maximum(data[:, :-2], data[:, 1:-1]), data[:, 2:]))


@pytest.mark.parametrize("name", ["batch_norm_eval", "batch_norm_eval_v"])
def test_batch_norm_in_evaluation(name: str, make_case: Any, cases: Any) -> None:
    """Before behavior_version 12, the running statistics take in the batch (by 0.99) before they are used."""
    case = make_case(name)
    value = case.run().outputs["output"].raw.detach().numpy()
    part = {
        k: cases.fill(f"l/batch_norm/l_l_output_{k}", (1, 1, 5))[0, 0] for k in ("mean", "variance", "gamma", "beta")
    }
    frames = np.concatenate([x for x, _ in sequences(case)])
    mean, variance = part["mean"], part["variance"]
    if name == "batch_norm_eval":
        mean = mean + (frames.mean(0) - mean) * 0.99
        variance = variance + (frames.var(0) - variance) * 0.99
    expected = (case.batch["data"].numpy() - mean) / np.sqrt(variance + 1e-3) * part["gamma"] + part["beta"]
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


def test_accumulate_mean(make_case: Any, cases: Any) -> None:
    case = make_case("accumulate_mean")
    old = cases.fill("l/mean_1", (3,))
    np.testing.assert_allclose(case.run().outputs["output"].raw.numpy(), old)
    case.model.train()
    np.testing.assert_allclose(case.run().outputs["output"].raw.numpy(), old)
    probabilities = np.concatenate(
        [softmax(affine(x, lambda n, *s: cases.fill(n, s), "a", 3)) for x, _ in sequences(case)]
    )
    expected = old + 0.001 * (probabilities.mean(0) - old)
    np.testing.assert_allclose(case.model.parameter("l/mean_1").numpy(), expected, rtol=1e-5)


def test_unmask(make_case: Any) -> None:
    case = make_case("unmask")
    value = case.run().outputs["l"].batch_major().raw.numpy()
    for i, (x, y) in enumerate(sequences(case)):
        last = np.zeros(5)
        for t in range(len(x)):
            last = x[t] if y[t] > 2 else last
            np.testing.assert_allclose(value[i, t], last)


def test_losses_of_two_layers_and_l2(make_case: Any, cases: Any) -> None:
    case = make_case("l2_reg")
    result = case.run()
    squares = {
        n: float((cases.fill(n, s) ** 2).sum())
        for n, s in (("a/W", (5, 4)), ("a/b", (4,)), ("output/W", (4, 7)), ("output/b", (7,)))
    }
    expected = 0.01 * (squares["a/W"] + squares["a/b"]) + 0.1 * (squares["output/W"] + squares["output/b"])
    assert result.total_constraints().item() == pytest.approx(expected, rel=1e-5)
    assert result.objective().item() == pytest.approx(result.losses["output"].sum.item() + expected, rel=1e-5)
    two = make_case("loss_two_train").run()
    expected = two.losses["output"].sum.item() + 0.3 * two.losses["aux"].sum.item()
    assert two.objective().item() == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_by_hand(make_case: Any, cases: Any) -> None:
    plain, focal, smooth = 0.0, 0.0, 0.0
    case = make_case("loss_ce")
    for x, y in sequences(case):
        p = softmax(affine(x, lambda n, *s: cases.fill(n, s), "output", 7))
        picked = p[np.arange(len(y)), y]
        plain -= np.log(picked).sum()
        focal -= (np.log(picked) * (1 - picked) ** 2).sum()
        soft = np.full_like(p, 0.1 / 6)
        soft[np.arange(len(y)), y] = 0.9
        smooth += (-(soft * np.log(p)).sum(-1) + (soft * np.log(soft)).sum(-1)).sum()
    assert case.run().losses["output"].sum.item() == pytest.approx(plain, rel=1e-5)
    result = make_case("loss_ce_opts").run()
    assert result.losses["output"].sum.item() == pytest.approx(focal, rel=1e-5)
    assert result.losses["output"].scale == 0.5
    assert make_case("loss_ce_smooth_train").run().losses["output"].sum.item() == pytest.approx(smooth, rel=1e-4)


def test_ctc_by_enumeration(make_case: Any, cases: Any) -> None:
    """The best path and the sum over all paths of a short sequence."""
    import itertools

    from returnn_hydra.network.ctc import ctc_neg_log_prob, ctc_viterbi_neg_log_prob

    log_p = torch.log_softmax(torch.from_numpy(cases.fill("ctc-input", (1, 5, 3))).double() * 4, -1)
    labels = [0, 1]
    scores = []
    for path in itertools.product(range(3), repeat=5):
        collapsed = [c for k, c in enumerate(path) if c != 2 and (k == 0 or c != path[k - 1])]
        if collapsed == labels:
            scores.append(sum(log_p[0, t, c].item() for t, c in enumerate(path)))
    arguments = (log_p, torch.tensor([5]), torch.tensor([labels]), torch.tensor([2]))
    assert ctc_neg_log_prob(*arguments).item() == pytest.approx(-math.log(sum(math.exp(s) for s in scores)), rel=1e-5)
    assert ctc_viterbi_neg_log_prob(*arguments).item() == pytest.approx(-max(scores), rel=1e-6)
    assert make_case("loss_ctc_linear").run().losses["output"].count == 9
