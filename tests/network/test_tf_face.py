"""Functions and expressions of configs, written for TensorFlow."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkError, NetworkModel
from returnn_hydra.network.expressions import evaluate_expression
from returnn_hydra.network.tf_face import tensorflow_modules, tf_namespace

SPECAUGMENT = """
def mask_one(x, batch_axis, axis, pos, max_amount):
    from returnn.tf.compat import v1 as tf
    from returnn.tf.util.basic import where_bc
    ndim = x.get_shape().ndims
    n_batch = tf.shape(x)[batch_axis]
    dim = tf.shape(x)[axis]
    amount = tf.random_uniform(shape=(n_batch,), minval=1, maxval=max_amount + 1, dtype=tf.int32)
    end = tf.minimum(pos + amount, dim)
    idxs = tf.expand_dims(tf.range(0, dim), 0)
    cond = tf.logical_and(tf.greater_equal(idxs, tf.expand_dims(pos, 1)), tf.less(idxs, tf.expand_dims(end, 1)))
    if batch_axis > axis:
        cond = tf.transpose(cond)
    cond = tf.reshape(cond, [tf.shape(x)[i] if i in (batch_axis, axis) else 1 for i in range(ndim)])
    return where_bc(cond, 0.0, x)

def mask_some(x, batch_axis, axis, min_num, max_num, max_dims):
    import tensorflow as tf
    n_batch = tf.shape(x)[batch_axis]
    num = tf.random.uniform(shape=(n_batch,), minval=min_num, maxval=max_num + 1, dtype=tf.int32)
    z = -tf.math.log(-tf.math.log(tf.random.uniform((n_batch, tf.shape(x)[axis]), 0, 1)))
    _, indices = tf.nn.top_k(z, tf.reduce_max(num))
    _, x = tf.while_loop(
        cond=lambda i, _: tf.less(i, tf.reduce_max(num)),
        body=lambda i, x: (
            i + 1,
            tf.where(tf.less(i, num), mask_one(x, batch_axis, axis, pos=indices[:, i], max_amount=max_dims), x),
        ),
        loop_vars=(0, x),
    )
    return x

def transform(data, network):
    import tensorflow as tf
    x = data.placeholder
    step1 = tf.where(tf.greater_equal(network.global_train_step, 10), 1, 0)
    def masked():
        most = tf.maximum(tf.shape(x)[data.time_dim_axis] // 10, 2) * (1 + step1)
        y = mask_some(x, data.batch_dim_axis, data.time_dim_axis, 1, most, 3)
        return mask_some(y, data.batch_dim_axis, data.feature_dim_axis, 1, 2, data.dim // 5)
    return network.cond_on_train(masked, lambda: x)
"""
NET = {
    "aug": {
        "class": "eval",
        "from": "data",
        "eval": "self.network.get_config().typed_value('transform')(source(0, as_data=True), network=self.network)",
    },
    "output": {"class": "copy", "from": "aug"},
}


@pytest.fixture
def transform(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The function of a config, loaded while the face is installed."""
    for name, module in tensorflow_modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("returnn", "returnn.tf", "returnn.tf.util"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    namespace: dict[str, Any] = {}
    exec(compile(SPECAUGMENT, "config", "exec"), namespace)
    return namespace["transform"]


def test_specaugment(transform: Any) -> None:
    torch.manual_seed(0)
    model = NetworkModel(NET, {"data": TensorSpec(dim=20)}, options={"transform": transform})
    data = torch.rand(3, 40, 20) + 1.0
    batch = Batch({"data": data}, {"data": torch.tensor([40, 40, 40])}, ["a", "b", "c"])
    model.eval()
    assert torch.equal(model(batch).outputs["output"].raw, data)
    model.train()
    masked = model(batch).outputs["output"].raw
    zero = masked == 0
    assert torch.equal(masked[~zero], data[~zero])
    frames, features = zero.all(2).sum(1), zero.all(1).sum(1)
    assert (frames >= 1).all() and (frames <= 2 * 4 * 3).all()
    assert (features >= 1).all() and (features <= 2 * 4).all()
    assert not torch.equal(zero[0], zero[1])


def test_uncovered_names_are_named() -> None:
    with pytest.raises(NetworkError, match=r"tf\.nn\.relux.*relu"):
        evaluate_expression("tf.nn.relux(1)", {"tf": tf_namespace()}, "here")
    with pytest.raises(NetworkError, match=r"tensorflow\.strange_function"):
        tensorflow_modules()["tensorflow"].strange_function  # noqa: B018


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "(1).__class__.__bases__",
        "tf.nn.relu.__globals__",
        "[x for x in (1, 2)]",
        "(lambda: 1)()",
        "x.data",
        "open('f')",
        "f'{x}'",
    ],
)
def test_expressions_reach_only_what_is_listed(text: str) -> None:
    with pytest.raises((NetworkError, AttributeError)):
        evaluate_expression(text, {"tf": tf_namespace(), "x": torch.zeros(2)}, "here")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 2 * 3 ** 2 // 4 - 7 % 4", 2),
        ("-x[0] if x[0] > 0 and not False else 5", -3.0),
        ("tf.reduce_sum(x, axis=0, keepdims=True)", [5.0]),
        ("tf.reshape(tf.range(6), [2, 3])[:, 1:]", [[1, 2], [4, 5]]),
        ("tf.clip_by_value(x, 0.0, 2.5)", [2.5, 2.0]),
        ("tf.where(x > 2.5, x, 0.0)", [3.0, 0.0]),
        ("tf.concat([x, x], axis=0)", [3.0, 2.0, 3.0, 2.0]),
        ("tf.cast(tf.equal(x, 2.0), tf.int32)", [0, 1]),
        ("tf.one_hot([1, 0], 2)", [[0.0, 1.0], [1.0, 0.0]]),
        ("tf.nn.softmax(tf.zeros([2]))", [0.5, 0.5]),
        ("tf.shape(x)[0] * 2", 4),
        ("tf.gather(x, [1, 1])", [2.0, 2.0]),
        ("tf.cumsum(x, exclusive=True)", [0.0, 3.0]),
        ("0 < x[1] < 3", True),
    ],
)
def test_values(text: str, expected: Any) -> None:
    value = evaluate_expression(text, {"tf": tf_namespace(), "x": torch.tensor([3.0, 2.0])}, "here")
    assert (value.tolist() if isinstance(value, torch.Tensor) else value) == expected
