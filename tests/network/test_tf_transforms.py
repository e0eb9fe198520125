"""Functions of configs in the forms of public setups: SpecAugment by masks, by scattering, by functions as `eval`."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkError, NetworkModel
from returnn_hydra.network.tf_face import tensorflow_modules

CODE = """
def spans(x, axis, first, longest):
    from returnn.tf.compat import v1 as tf
    batch, size = tf.shape(input=x)[0], tf.shape(input=x)[axis]
    count = tf.random.uniform(shape=(batch,), minval=1, maxval=longest + 1, dtype=tf.int32)
    last = tf.minimum(first + count, size)
    places = tf.expand_dims(tf.range(0, size), 0)
    inside = tf.math.logical_and(
        tf.greater_equal(places, tf.expand_dims(first, 1)), tf.less(places, tf.expand_dims(last, 1))
    )
    return inside

def random_spans(x, axis, least, most, longest):
    from returnn.tf.compat import v1 as tf
    batch = tf.shape(x)[0]
    if isinstance(least, int) and isinstance(most, int) and least == most:
        num = least
    else:
        num = tf.random_uniform(shape=(batch,), minval=least, maxval=most + 1, dtype=tf.int32)
    noise = -tf.log(-tf.log(tf.random_uniform((batch, tf.shape(x)[axis]), 0, 1)))
    _, indices = tf.nn.top_k(noise, num if isinstance(num, int) else tf.reduce_max(num))
    found = tf.zeros(shape=[batch, tf.shape(x)[axis]], dtype=tf.bool)
    if isinstance(num, int):
        for i in range(num):
            found = tf.logical_or(found, spans(x, axis, indices[:, i], longest))
        return found
    _, found = tf.while_loop(
        cond=lambda i, _: tf.less(i, tf.reduce_max(num)),
        body=lambda i, found: (
            i + 1,
            tf.where(tf.less(i, num), tf.math.logical_or(found, spans(x, axis, indices[:, i], longest)), found),
        ),
        loop_vars=(0, found),
    )
    return found

def frames_to_mask(source, **kwargs):
    from returnn.tf.compat import v1 as tf
    data = source(0, as_data=True, auto_convert=False)
    assert (data.batch_dim_axis, data.time_dim_axis) == (0, 1)
    x = data.placeholder
    return random_spans(x, 1, 1, tf.maximum(data.time_dimension() // 10, 1), 3)

def spec_augment(source, self, **kwargs):
    from returnn.tf.compat import v1 as tf
    data = source(0, as_data=True)
    x = data.placeholder
    network = self.network
    late = tf.where(tf.greater_equal(network.global_train_step, 1000), 1, 0)
    def masked():
        shape = [tf.shape(x)[i] if i in (0, 2) else 1 for i in range(x.get_shape().ndims)]
        rows = random_spans(x, data.time_dim_axis, 1, 2 + late, 2)
        columns = random_spans(x, data.feature_dim_axis, 2, 2, data.dim // 5)
        y = tf.where(tf.tile(tf.expand_dims(rows, 2), [1, 1, data.dim]), tf.zeros_like(x), x)
        return tf.compat.v1.where(tf.reshape(columns, shape) & tf.ones_like(y, dtype=tf.bool), tf.zeros_like(y), y)
    long = tf.greater_equal(tf.shape(x)[data.time_dim_axis], 20)
    return tf.cond(tf.logical_and(network.train_flag, long), masked, lambda: x)

def transform(data, network, max_num=2, **config):
    import tensorflow as tf
    x = data.placeholder
    epoch = tf.cast(network.global_train_step / config["steps_per_epoch"], tf.int32)
    use = tf.logical_and(config["enable"], tf.greater_equal(epoch, 0))
    weights = network.layers["features"].subnetwork.layers["inner"].output.placeholder
    order = tf.argsort(tf.reduce_mean(weights, axis=[0, 1]), direction="DESCENDING")
    batch, size = tf.shape(x)[0], tf.shape(x)[2]
    where = tf.stack([tf.range(batch), tf.fill([batch], order[0])], axis=1)
    mask = tf.tensor_scatter_nd_update(
        tf.zeros((batch, size), dtype=tf.bool), where, tf.ones_like(where[:, 0], dtype=tf.bool)
    )
    tf.summary.scalar("masked", tf.reduce_sum(tf.cast(mask, tf.float32)))
    masked = tf.where(tf.reshape(mask, [batch, 1, size]), tf.zeros_like(x), x)
    return tf.cond(use, lambda: masked, lambda: x)

def unknown(source, **kwargs):
    import tensorflow as tf
    return tf.signal.inverse_mdct(source(0))
"""


@pytest.fixture
def functions(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The functions of a config, loaded while the face is installed."""
    for name, module in tensorflow_modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("returnn", "returnn.tf", "returnn.tf.util"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    namespace: dict[str, Any] = {}
    exec(compile(CODE, "config", "exec"), namespace)
    return namespace


def make(net: dict[str, Any], functions: dict[str, Any]) -> tuple[NetworkModel, Batch]:
    torch.manual_seed(0)
    model = NetworkModel(net, {"data": TensorSpec(dim=20)}, options=functions)
    lengths = torch.tensor([40, 25, 22])
    return model, Batch({"data": torch.rand(3, 40, 20) + 1.0}, {"data": lengths}, ["a", "b", "c"])


def test_function_as_eval(functions: dict[str, Any]) -> None:
    net = {"output": {"class": "eval", "from": "data", "eval": functions["spec_augment"]}}
    model, batch = make(net, functions)
    model.eval()
    assert torch.equal(model(batch).outputs["output"].raw, batch["data"])
    model.train()
    masked = model(batch).outputs["output"].raw
    zero = masked == 0
    assert torch.equal(masked[~zero], batch["data"][~zero])
    rows, columns = zero.all(2).sum(1), zero.all(1).sum(1)
    assert (rows >= 1).all() and (rows <= 2 * 2).all()
    assert (columns >= 2).all() and (columns <= 2 * 4).all()
    short = Batch({"data": batch["data"][:, :15]}, {"data": torch.tensor([15, 9, 3])}, ["a", "b", "c"])
    assert torch.equal(model(short).outputs["output"].raw, short["data"])


def test_mask_without_features(functions: dict[str, Any]) -> None:
    """(B, T) of truth values, used by `switch`."""
    net = {
        "mask": {"class": "eval", "from": "data", "eval": functions["frames_to_mask"],
                 "out_type": {"dtype": "bool", "shape": (None,), "dim": None, "feature_dim_axis": None}},
        "zero": {"class": "constant", "value": 0.0},
        "output": {"class": "switch", "condition": "mask", "true_from": "zero", "false_from": "data"},
    }  # fmt: skip
    model, batch = make(net, functions)
    result = model.train()(batch, layers=["mask"])
    mask = result.outputs["mask"]
    assert mask.raw.dtype == torch.bool and mask.feature is None
    flags = mask.batch_major().raw
    assert (flags.sum(1) >= 1).all() and (flags.sum(1) <= 12).all()
    assert torch.equal(result.outputs["output"].batch_major().raw == 0, flags[..., None].expand(3, 40, 20))


def test_transform_that_looks_at_other_layers(functions: dict[str, Any]) -> None:
    net = {
        "features": {"class": "subnetwork", "from": "data", "subnetwork": {
            "inner": {"class": "eval", "from": "data", "eval": "source(0) * 2"},
            "output": {"class": "copy", "from": "inner"}}},
        "output": {"class": "eval", "from": "features", "eval":
            "self.network.get_config().typed_value('transform')(source(0, as_data=True), network=self.network, "
            "enable=True, steps_per_epoch=100)"},
    }  # fmt: skip
    model, batch = make(net, functions)
    found = model(batch).outputs["output"].raw
    best = int(batch["data"].mean((0, 1)).argmax())
    expected = batch["data"] * 2
    expected[:, :, best] = 0
    torch.testing.assert_close(found, expected)


def test_a_function_that_is_not_covered_is_named(functions: dict[str, Any]) -> None:
    with pytest.raises(NetworkError, match=r"tensorflow\.signal"):
        make({"output": {"class": "eval", "from": "data", "eval": functions["unknown"]}}, functions)
