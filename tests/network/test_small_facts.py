"""Small facts seen live in RETURNN's TensorFlow backend (1.20261022): names of parameters, axes, first frames."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkError, NetworkModel

SPECS = {"data": TensorSpec(dim=4)}


@pytest.fixture
def batch() -> Batch:
    data = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(5))
    return Batch({"data": data}, {"data": torch.tensor([5, 3])}, ["a", "b"])


def layer(cls: str, frm: Any = "data", **options: Any) -> dict[str, Any]:
    return {"class": cls, "from": frm, **options}


def test_bias_of_combine() -> None:
    model = NetworkModel({"output": layer("combine", ["data", "data"], kind="add", with_bias=True)}, SPECS)
    assert {name: tuple(p.shape) for name, p in model.tf_parameters().items()} == {"output/b": (4,)}


def test_learnt_first_frame() -> None:
    unit = {
        "h": layer("linear", ["prev:h", "data:source"], n_out=3, initial_output="var"),
        "output": layer("copy", "h"),
    }
    model = NetworkModel({"output": layer("rec", unit=unit)}, SPECS)
    assert {name: tuple(p.shape) for name, p in model.tf_parameters().items()} == {
        "output/rec/h/W": (7, 3), "output/rec/h/b": (3,), "output/rec/h/init_h_var": (3,)
    }  # fmt: skip
    assert not model.parameter("output/rec/h/init_h_var").any()


@pytest.mark.parametrize(("version", "sizes"), [(0, [2, 5, 1]), (3, [2, 5])])
def test_dot_without_second_axis(batch: Batch, version: int, sizes: list[int]) -> None:
    """Up to behaviour version 2, a second source without an own axis leaves one of size 1."""
    net = {
        "mean": layer("reduce", mode="mean", axis="T"),
        "output": layer("dot", ["data", "mean"], red1="F", red2="F", var1="T", var2="T?"),
    }
    value = NetworkModel(net, SPECS, behavior_version=version)(batch).outputs["output"].batch_major()
    assert [axis.size for axis in value.axes] == sizes
    x = batch["data"].numpy()
    for row, frames, n in zip(value.raw.numpy(), x, (5, 3), strict=True):
        np.testing.assert_allclose(row[:n].reshape(n), frames[:n] @ frames[:n].mean(0), rtol=1e-4, atol=1e-5)


def test_places_by_rank_are_no_features(batch: Batch) -> None:
    value = NetworkModel({"output": layer("top_k", axis="F", k=2)}, SPECS)(batch).outputs["output"]
    assert value.dim is None and value.axes[-1].size == 2


def test_condition_makes_the_parameters_of_both_branches(batch: Batch) -> None:
    branch = layer("copy", "other")
    net = {
        "train": {"class": "train_flag"},
        "other": layer("linear", n_out=3),
        "output": layer("cond", [], condition="train", true_layer=layer("linear", n_out=3), false_layer=branch),
    }
    model = NetworkModel(net, SPECS)
    assert {"other/W", "output/true/W"} <= model.tf_parameters().keys()
    assert model.eval()(batch).outputs["output"].raw.shape == (2, 5, 3)


def test_switch_that_keeps_its_last_frame(batch: Batch) -> None:
    """`prev:output` has the features of the branch that is computed."""
    unit = {
        "late": layer("compare", ":i", kind="greater", value=1),
        "new": layer("combine", ["prev:output", "data:source"], kind="add"),
        "output": {"class": "switch", "condition": "late", "true_from": "new", "false_from": "prev:output"},
    }
    value = NetworkModel({"output": layer("rec", unit=unit)}, SPECS)(batch).outputs["output"].batch_major()
    expected = batch["data"].clone()
    expected[:, :2] = 0
    torch.testing.assert_close(value.raw, expected.cumsum(1))


@pytest.mark.parametrize(
    "removal",
    [
        layer("reduce", "parts", mode="sum", axis="F"),
        layer("gather", "parts", position=0, axis="F"),
        layer("squeeze", "single", axis="F"),
    ],
    ids=["reduce", "gather", "squeeze"],
)
def test_the_last_static_axis_takes_the_place_of_the_features(batch: Batch, removal: dict[str, Any]) -> None:
    net = {
        "parts": layer("split_dims", axis="F", dims=(2, 2)),
        "single": layer("split_dims", axis="F", dims=(4, 1)),
        "removed": removal,
        "output": layer("linear", "removed", n_out=3, activation=None),
    }
    model = NetworkModel(net, SPECS)
    result = model(batch).outputs
    size = 4 if removal["class"] == "squeeze" else 2
    assert result["removed"].dim == size and model.parameter("output/W").shape == (size, 3)


def test_output_that_depends_on_itself_has_the_size_of_the_loop(batch: Batch) -> None:
    """Attention with heads, whose query reads the frame before: only the loop's `n_out` tells how large that is."""
    unit = {
        "query": layer("linear", ["data:source", "prev:output"], n_out=2, activation="tanh"),
        "energy": layer("dot", ["base:parts", "query"], red1="F", red2="F", var1=["T", "dim:3"], var2="T?"),
        "weights": layer("softmax_over_spatial", "energy"),
        "att": {"class": "generic_attention", "weights": "weights", "base": "base:parts"},
        "output": layer("merge_dims", "att", axes="static"),
    }
    net = {
        "wide": layer("linear", n_out=6, activation=None),
        "parts": layer("split_dims", "wide", axis="F", dims=(3, 2)),
        "output": layer("rec", unit=unit, n_out=6),
    }
    model = NetworkModel(net, SPECS)
    assert model.parameter("output/rec/query/W").shape == (10, 2)
    assert model(batch).outputs["output"].dim == 6


def test_linear_keeps_the_place_of_the_features(batch: Batch) -> None:
    """A softmax over time puts the time last; what follows leaves it there."""
    net = {"weights": layer("softmax_over_spatial"), "output": layer("linear", "weights", n_out=3, activation=None)}
    model = NetworkModel(net, SPECS)
    result = model(batch).outputs
    assert [axis.size for axis in result["output"].axes] == [2, 3, 5]
    expected = torch.einsum("bft,fo->bot", result["weights"].raw, model.parameter("output/W"))
    torch.testing.assert_close(result["output"].raw, expected)


@pytest.mark.parametrize("in_dim", [2, 3, SimpleNamespace(dimension=3)])
def test_in_dim_says_where_the_features_are(batch: Batch, in_dim: Any) -> None:
    net = {
        "wide": layer("linear", n_out=6, activation=None),
        "parts": layer("split_dims", "wide", axis="F", dims=(3, 2)),
        "output": layer("linear", "parts", n_out=5, activation=None, with_bias=False, in_dim=in_dim),
    }
    model = NetworkModel(net, SPECS)
    result = model(batch).outputs
    parts, weight = result["parts"].batch_major().raw, model.parameter("output/W")
    formula = "bthf,fo->btho" if in_dim == 2 else "bthf,ho->btof"
    torch.testing.assert_close(result["output"].batch_major().raw, torch.einsum(formula, parts, weight))


def test_in_dim_that_is_no_axis() -> None:
    with pytest.raises(NetworkError, match=r"output .* in_dim = 7 is none, or several, of the axes"):
        NetworkModel({"output": layer("linear", n_out=5, in_dim=7)}, SPECS)


@pytest.mark.parametrize("option", ["param_variational_noise", "param_dropout"])
@pytest.mark.parametrize(("own", "disturbed"), [({}, True), ({"value": None}, True), ({"value": 0}, False)])
def test_a_layer_switches_noise_on_parameters_off(
    batch: Batch, option: str, own: dict[str, Any], disturbed: bool
) -> None:
    """The config's value holds for layers that say nothing, not for one that says 0."""
    options = {option: own["value"]} if own else {}
    net = {"output": layer("linear", n_out=3, **options)}
    model = NetworkModel(net, SPECS, options={option: 0.5})
    quiet = model.eval()(batch).outputs["output"].raw
    torch.manual_seed(1)
    noisy = model.train()(batch).outputs["output"].raw
    assert torch.equal(quiet, noisy) is not disturbed


def test_l2_of_a_reused_parameter_counts_once(batch: Batch) -> None:
    net = {
        "a": layer("linear", n_out=4, activation=None, L2=0.5),
        "output": layer("linear", "a", n_out=4, activation=None, L2=0.5, reuse_params="a"),
    }
    model = NetworkModel(net, SPECS)
    expected = 0.5 * (model.parameter("a/W").square().sum() + model.parameter("a/b").square().sum())
    torch.testing.assert_close(model(batch).total_constraints(), expected)


def test_size_base_drops_the_frames_that_are_too_many(batch: Batch) -> None:
    """Up-sampling gives whole multiples; the targets are shorter."""
    net = {
        "less": layer("pool", pool_size=(3,), mode="max", padding="same"),
        "more": layer("transposed_conv", "less", n_out=2, filter_size=(3,), strides=(3,), activation=None),
        "output": layer("reinterpret_data", "more", size_base="data"),
    }
    result = NetworkModel(net, SPECS)(batch)
    output, more = result.outputs["output"].batch_major(), result.outputs["more"].batch_major()
    assert more.raw.shape == (2, 6, 2)
    torch.testing.assert_close(output.raw, more.raw[:, :5])
    assert output.time_axis is not None and output.time_axis.lengths.tolist() == [5, 3]


def test_a_function_may_add_in_place(batch: Batch) -> None:
    """TensorFlow's `x += y` makes a new tensor, of the common shape."""

    def widened(source: Any, **_: Any) -> Any:
        x = source(0)[:1]
        x += source(0)
        return x

    net = {"output": layer("eval", eval=widened), "b": layer("copy", is_output_layer=True)}
    result = NetworkModel(net, SPECS)(batch)
    torch.testing.assert_close(result.outputs["output"].raw, batch["data"] + batch["data"][:1])
    torch.testing.assert_close(result.outputs["b"].raw, batch["data"])
