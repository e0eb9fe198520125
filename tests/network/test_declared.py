"""Functions of configs in `eval` layers: which arguments they get, and types that they declare."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkError, NetworkModel
from returnn_hydra.network.tf_face import tensorflow_modules

SPECS = {"data": TensorSpec(dim=3), "classes": TensorSpec(dim=5, sparse=True)}
HELPERS = tensorflow_modules()["returnn.tf.util.basic"]


@pytest.fixture
def batch() -> Batch:
    data = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(5))
    classes = torch.tensor([[1, 2, 3], [4, 2, 0]], dtype=torch.int32)
    lengths = {"data": torch.tensor([7, 4]), "classes": torch.tensor([3, 2])}
    return Batch({"data": data, "classes": classes}, lengths, ["a", "b"])


def layer(cls: str, frm: Any = "data", **options: Any) -> dict[str, Any]:
    return {"class": cls, "from": frm, **options}


def spread(source: Any, blank: int, **_: Any) -> Any:
    """Labels over the frames of the second source: another number of entries than the labels have."""
    labels, frames = (source(i, as_data=True, auto_convert=False) for i in (0, 1))
    return HELPERS.get_rnnt_linear_aligned_output(
        input_lens=frames.get_sequence_lengths(),
        target_lens=labels.get_sequence_lengths(),
        targets=labels.get_placeholder_as_batch_major(),
        blank_label_idx=blank,
        targets_consume_time=True,
    )[0]


def type_of_spread(sources: Any, **_: Any) -> Any:
    lengths = sources[1].output.get_sequence_lengths()
    return HELPERS.Data(name="spread", sparse=True, dim=6, size_placeholder={0: lengths})


def type_as_the_labels(sources: Any, **_: Any) -> Any:
    return sources[0].output


def test_type_of_a_source(batch: Batch) -> None:
    def halves(source: Any, **_: Any) -> Any:
        labels = source(0, as_data=True, auto_convert=False)
        assert isinstance(labels, HELPERS.Data)
        return labels.get_placeholder_as_batch_major() // 2

    net = {
        "halves": layer("eval", "data:classes", eval=halves, out_type=type_as_the_labels),
        "output": layer("linear", "halves", n_out=2),
    }
    value = NetworkModel(net, SPECS)(batch).outputs["halves"].batch_major()
    assert value.sparse_dim == 5 and value.raw.tolist() == [[0, 1, 1], [2, 1, 0]]


def test_type_as_a_function(batch: Batch) -> None:
    net = {
        "spread": layer(
            "eval", ["data:classes", "data"], eval=spread, eval_locals={"blank": 5}, out_type=type_of_spread
        ),
        "output": layer("softmax", "data", n_out=6, loss="ce", target="layer:spread"),
    }
    result = NetworkModel(net, SPECS)(batch)
    value = result.outputs["spread"].batch_major()
    assert value.sparse_dim == 6 and value.raw.tolist() == [[5, 1, 5, 2, 5, 3, 5], [5, 4, 2, 5, 0, 0, 0]]
    assert value.axes == result.outputs["output"].batch_major().axes[:2]
    assert result.losses["output"].count == 11


def test_type_with_the_frames_of_a_stream(batch: Batch) -> None:
    """Of the axes of the sources, the function leaves one."""

    def first_frames(source: Any, self: Any) -> Any:
        assert self.name == "a"
        labels = source(0, as_data=True, auto_convert=False).placeholder
        return source(1, as_data=True, auto_convert=False).placeholder[:, : labels.shape[1], 0].int()

    out_type = {
        "batch_dim_axis": 0,
        "time_dim_axis": 1,
        "shape": (None,),
        "sparse": True,
        "dtype": "int32",
        "dim": None,
    }
    net = {
        "a": layer("eval", ["data:classes", "data"], eval=first_frames, out_type=out_type, size_target="classes"),
        "output": layer("copy", ["a"]),
    }
    value = NetworkModel(net, SPECS)(batch).outputs["a"].batch_major()
    assert value.time_axis is not None and value.time_axis.lengths is not None
    assert value.time_axis.lengths.tolist() == [3, 2] and value.raw.equal(batch["data"][:, :3, 0].int())


@pytest.mark.parametrize(
    ("frames", "labels", "consume", "expected"),
    [
        (4, [1, 2, 3], False, [0, 1, 0, 2, 0, 3, 0]),
        (0, [1, 2, 3], False, [1, 2, 3]),
        (4, [1], False, [0, 0, 1, 0, 0]),
        (3, [1, 2], False, [0, 1, 0, 2, 0]),
        (7, [1, 2, 3], True, [0, 1, 0, 2, 0, 3, 0]),
    ],
)
def test_labels_spread_over_frames(frames: int, labels: list[int], consume: bool, expected: list[int]) -> None:
    """Examples of RETURNN's documentation."""
    value, lengths = HELPERS.get_rnnt_linear_aligned_output([frames], [labels], [len(labels)], 0, 0, consume)
    assert value.tolist() == [expected] and lengths.tolist() == [len(expected)]


def test_sources_without_common_axes_need_a_type(batch: Batch) -> None:
    net = {"a": layer("linear", n_out=4, activation=None), "b": layer("linear", n_out=6, activation=None)}
    net["output"] = layer("eval", ["a", "b"], eval=lambda source, self: source(0, as_data=True).placeholder.sum((1, 2)))
    with pytest.raises(NetworkError, match="different sizes"):
        NetworkModel(net, SPECS)
    net["output"]["out_type"] = {"shape": ()}
    model = NetworkModel(net, SPECS)
    result = model(batch, layers=["a"])
    torch.testing.assert_close(result.outputs["output"].raw, result.outputs["a"].batch_major().raw.sum((1, 2)))


def test_masked_units_read_the_network_around(batch: Batch) -> None:
    """`base:` in the network of a masked unit: the frames where the mask is true."""
    inside = {"sum": layer("combine", ["data", "base:other"], kind="add"), "output": layer("copy", "sum")}
    net = {
        "mask": layer("eval", eval="tf.greater(source(0)[:, :, 0], 0.0)", out_type={"dtype": "bool", "shape": (None,)}),
        "other": layer("eval", eval="source(0) * 2"),
        "output": layer("masked_computation", mask="mask", unit=layer("subnetwork", subnetwork=inside)),
    }
    value = NetworkModel(net, SPECS)(batch).outputs["output"].batch_major()
    for row, frames, n in zip(value.raw, batch["data"], (7, 4), strict=True):
        expected = 3 * frames[:n][frames[:n, 0] > 0]
        torch.testing.assert_close(row[: len(expected)], expected)
