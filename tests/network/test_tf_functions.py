"""Functions of the TensorFlow face: values by hand, which TensorFlow 2.15 gives for the same texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from returnn_hydra.network.expressions import evaluate_expression
from returnn_hydra.network.tf_face import tensorflow_modules, tf_namespace

X = np.array([[3.0, 1.0, 2.0], [0.5, -1.0, 4.0]], dtype="float32")
VALUES: dict[str, Any] = {
    "tf.scatter_nd([[1], [3], [1]], [9.0, 10.0, 1.0], [5])": [0, 10, 0, 10, 0],
    "tf.tensor_scatter_nd_update(x, [[0, 1]], [7.0])": [[3, 7, 2], [0.5, -1, 4]],
    "tf.tensor_scatter_nd_add(x, [[0, 1], [0, 1]], [7.0, 1.0])": [[3, 9, 2], [0.5, -1, 4]],
    "tf.einsum('ij,kj->ik', x, x)": [[14, 8.5], [8.5, 17.25]],
    "tf.tensordot(x, x, [[1], [1]])": [[14, 8.5], [8.5, 17.25]],
    "tf.reverse_sequence(x, [2, 3], seq_axis=1, batch_axis=0)": [[1, 3, 2], [4, -1, 0.5]],
    "tf.sort(x, direction='DESCENDING')": [[3, 2, 1], [4, 0.5, -1]],
    "tf.argsort(x, axis=-1)": [[1, 2, 0], [1, 0, 2]],
    "tf.linspace(0.0, 1.0, 3)": [0, 0.5, 1],
    "tf.boolean_mask(x, [False, True])": [[0.5, -1, 4]],
    "tf.boolean_mask(x, x > 1.5)": [3, 2, 4],
    "tf.roll(x, shift=1, axis=1)": [[2, 3, 1], [4, 0.5, -1]],
    "tf.slice(x, [0, 1], [-1, 2])": [[1, 2], [-1, 4]],
    "tf.broadcast_to([1.0, 2.0], [2, 2])": [[1, 2], [1, 2]],
    "tf.repeat(x, 2, axis=0)": [[3, 1, 2], [3, 1, 2], [0.5, -1, 4], [0.5, -1, 4]],
    "tf.repeat([1, 2], [2, 1])": [1, 1, 2],
    "tf.searchsorted([1.0, 2.0, 3.0], [2.0, 2.5])": [1, 2],
    "tf.linalg.band_part(tf.ones([3, 3]), 1, 0)": [[1, 0, 0], [1, 1, 0], [0, 1, 1]],
    "tf.math.invert_permutation([2, 0, 1])": [1, 2, 0],
    "tf.eye(2)": [[1, 0], [0, 1]],
    "tf.meshgrid([1, 2], [3, 4, 5])[1]": [[3, 3], [4, 4], [5, 5]],
    "tf.nn.moments(x, [1])[1]": [2 / 3, 79 / 18],
    "tf.nn.bias_add(x, [1.0, 0.0, -1.0])": [[4, 1, 1], [1.5, -1, 3]],
    "tf.nn.softmax_cross_entropy_with_logits(labels=[[0.0, 1.0]], logits=[[0.0, 0.0]])": [np.log(2)],
    "tf.math.multiply_no_nan([1.0, 2.0], [0.0, 3.0])": [0, 6],
    "tf.math.cumulative_logsumexp([0.0, 0.0])": [0, np.log(2)],
    "tf.math.cumprod([1.0, 2.0, 3.0])": [1, 2, 6],
    "tf.cast([1.7, -1.7], tf.int64)": [1, -1],
    "tf.ensure_shape(x, (None, 3))": X,
    "tf.shape(input=x)": [2, 3],
    "tf.transpose(a=x)": X.T,
}


@pytest.mark.parametrize("text", VALUES)
def test_values(text: str) -> None:
    found = evaluate_expression(text, {"tf": tf_namespace(), "x": torch.from_numpy(X)}, "here")
    np.testing.assert_allclose(found.numpy(), np.asarray(VALUES[text]), rtol=1e-5, atol=1e-6)


def test_functions_that_call_functions() -> None:
    tf = tensorflow_modules()["tensorflow"]
    x = torch.from_numpy(X)
    assert torch.equal(tf.map_fn(lambda row: row * 2, x), x * 2)
    pairs = tf.map_fn(lambda parts: parts[0][: int(parts[1])].sum(), (x, torch.tensor([1, 2])), dtype=tf.float32)
    assert pairs.tolist() == [3.0, -0.5]
    assert torch.equal(tf.foldl(lambda total, row: total + row, x), x.sum(0))
    assert tf.case([(torch.tensor(False), lambda: 1), (torch.tensor(True), lambda: 2)], default=lambda: 3) == 2
    assert tf.case([], default=lambda: 3) == 3
    with tf.control_dependencies([tf.assert_equal(1, 1), tf.debugging.assert_less(1, 2)]):
        assert tf.summary.scalar("name", 1.0) is None


def test_random_functions() -> None:
    torch.manual_seed(1)
    tf = tensorflow_modules()["tensorflow"]
    mixed = tf.random.shuffle(torch.arange(20))
    assert sorted(mixed.tolist()) == list(range(20)) and mixed.tolist() != list(range(20))
    values = tf.random.truncated_normal([1000], mean=1.0, stddev=0.5)
    assert float((values - 1).abs().max()) <= 1.0 and abs(float(values.mean()) - 1) < 0.1
