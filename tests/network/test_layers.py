"""Less used layers, each against what numpy or torch say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkModel
from returnn_hydra.network.sampling import class_probabilities, draw_distinct, sampled_loss

SPECS = {
    "data": TensorSpec(dim=4),
    "classes": TensorSpec(dim=5, sparse=True, same_length_as="data"),
    "short": TensorSpec(dim=5, sparse=True),
}
LENGTHS = (5, 3)


def layer(cls: str, frm: Any = "data", **options: Any) -> dict[str, Any]:
    return {"class": cls, "from": frm, **options}


def batch() -> Batch:
    generator = torch.Generator().manual_seed(7)
    data = torch.randn(2, 5, 4, generator=generator)
    classes = torch.randint(0, 5, (2, 5), generator=generator, dtype=torch.int32)
    data[1, 3:], classes[1, 3:] = 0, 0
    short = torch.tensor([[1, 2], [3, 0]], dtype=torch.int32)
    sizes = torch.tensor(LENGTHS)
    lengths = {"data": sizes, "classes": sizes, "short": torch.tensor([2, 1])}
    return Batch({"data": data, "classes": classes, "short": short}, lengths, ["a", "b"])


def run(net: dict[str, Any], **options: Any) -> Any:
    torch.manual_seed(0)
    names = [name for name in net if name != "output"]
    model = NetworkModel(net, SPECS, layers=names, **options).eval()
    return model(batch(), layers=names)


def rows(value: Any) -> list[np.ndarray]:
    """One array per sequence, cut to its length."""
    value = value.batch_major()
    time = value.time_axis
    lengths = time.lengths.tolist() if time is not None and time.lengths is not None else [None, None]
    return [value.raw[i].detach().numpy()[: lengths[i]] for i in range(2)]


def inputs(key: str = "data") -> list[np.ndarray]:
    return [batch()[key][i, :n].numpy() for i, n in enumerate(batch().lengths[key].tolist())]


def check(net: dict[str, Any], expected: list[np.ndarray], **options: Any) -> None:
    for found, wanted in zip(rows(run(net, **options).outputs["output"]), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_repeat_as_often_as_a_layer_says() -> None:
    check(
        {"output": layer("repeat", repetitions="data:classes", axis="T")},
        [np.repeat(x, y, 0) for x, y in zip(inputs(), inputs("classes"), strict=True)],
    )


def test_resize() -> None:
    check({"output": layer("resize", factor=2, axis="T")}, [np.repeat(x, 2, 0) for x in inputs()])
    filled = [np.stack([x, np.full_like(x, 7)], 1).reshape(-1, 4) for x in inputs()]
    check({"output": layer("resize", factor=2, axis="T", kind="fill", fill_value=7)}, filled)


def test_concat_in_time() -> None:
    net = {"output": layer("concat", [("data:classes", "T"), ("data:short", "T")])}
    check(net, [np.concatenate(p) for p in zip(inputs("classes"), inputs("short"), strict=True)])


def test_prefix_and_slice() -> None:
    net = {"m": layer("reduce", mode="mean", axis="T"), "output": layer("prefix_in_time", prefix="m")}
    check(net, [np.concatenate([x.mean(0, keepdims=True), x]) for x in inputs()])
    net = {"one": {"class": "constant", "value": 2, "with_batch_dim": True}, "output": layer("slice_nd", start="one")}
    check(net, [x[2:] for x in inputs()])
    net = {"m": layer("reduce", mode="mean", axis="T"), "output": layer("postfix_in_time", postfix="m")}
    check(net, [np.concatenate([x, x.mean(0, keepdims=True)]) for x in inputs()])


def test_pad_at_the_ends() -> None:
    net = {"output": layer("pad", axes="T", padding=(1, 2), value=0.5, handle_dynamic_dims=True)}
    check(net, [np.pad(x, ((1, 2), (0, 0)), constant_values=0.5) for x in inputs()])


def test_top_k_and_split() -> None:
    net = {"output": layer("top_k", axis="F", k=2), "i": layer("copy", "output/indices")}
    result = run(net)
    for found, index, x in zip(rows(result.outputs["output"]), rows(result.outputs["i"]), inputs(), strict=True):
        np.testing.assert_allclose(found, -np.sort(-x, -1)[:, :2])
        np.testing.assert_array_equal(index, np.argsort(-x, -1)[:, :2])
    check(
        {"s": layer("split", axis="F", size_splits=[1, 3]), "output": layer("copy", "s/1")},
        [x[:, 1:] for x in inputs()],
    )


def test_flat_batch_and_back() -> None:
    net = {
        "flat": layer("flatten_batch"),
        "h": layer("eval", "flat", eval="source(0) * 2.0"),
        "output": layer("unflatten_batch", "h"),
    }
    check(net, [2 * x for x in inputs()])
    assert run(net).outputs["flat"].raw.shape == (10, 4)


def test_scatter() -> None:
    net = {
        "i": layer("range_in_axis", "data:short", axis="T"),
        "position": layer("combine", ["i", "data:short"], kind="mul"),
        "value": layer("cast", "data:short", dtype="float32"),
        "output": layer("scatter_nd", "value", position="position", position_axis="T", output_dim_via_time_from="data"),
    }
    expected = []
    for y, n in zip(inputs("short"), LENGTHS, strict=True):
        out = np.zeros(n)
        for place, label in enumerate(y):
            out[place * label] += label
        expected.append(out)
    check(net, expected)


def test_search_sorted() -> None:
    net = {
        "sorted": layer("cumsum", "data:classes", axis="T"),
        "output": layer("search_sorted", [], sorted_sequence="sorted", values="data:short", axis="T"),
    }
    expected = [np.searchsorted(np.cumsum(y), s) for y, s in zip(inputs("classes"), inputs("short"), strict=True)]
    check(net, expected)


def test_norms() -> None:
    check({"output": layer("math_norm", p=2, axis="F")}, [np.linalg.norm(x, axis=1) for x in inputs()])
    net = {"output": layer("norm", axis="T", scale=False, bias=False)}
    check(net, [(x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6) for x in inputs()])


def test_losses_as_layers() -> None:
    net = {
        "p": layer("linear", n_out=5, activation=None),
        "l": {
            "class": "sparse_softmax_cross_entropy_with_logits",
            "from": [],
            "logits": "p",
            "targets": "data:classes",
        },
        "ctc": layer("linear", n_out=6, activation=None),
        "c": {"class": "ctc_loss", "from": [], "logits": "ctc", "targets": "data:short"},
        "e": {"class": "edit_distance", "from": [], "a": "data:classes", "b": "data:short"},
        "output": layer("copy", "l", loss="as_is"),
    }
    result = run(net)
    logits = result.outputs["p"].batch_major().raw
    wanted = sum(
        torch.nn.functional.cross_entropy(logits[i, :n], batch()["classes"][i, :n].long(), reduction="sum")
        for i, n in enumerate(LENGTHS)
    )
    torch.testing.assert_close(result.losses["output"].sum, wanted)
    log_p = result.outputs["ctc"].batch_major().raw.log_softmax(-1).transpose(0, 1)
    wanted = torch.nn.functional.ctc_loss(
        log_p, batch()["short"].long(), torch.tensor(LENGTHS), torch.tensor([2, 1]), blank=5, reduction="none"
    )
    torch.testing.assert_close(result.outputs["c"].raw, wanted)
    assert result.outputs["e"].raw.tolist() == [
        edit_distance(a.tolist(), b.tolist()) for a, b in zip(inputs("classes"), inputs("short"), strict=True)
    ]


def edit_distance(a: list[int], b: list[int]) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(edit_distance(a[1:], b) + 1, edit_distance(a, b[1:]) + 1, edit_distance(a[1:], b[1:]) + (a[0] != b[0]))


@pytest.mark.parametrize(("loss", "function"), [("mean_l1", np.mean), ("l1", np.sum)])
def test_distances(loss: str, function: Any) -> None:
    net = {"a": layer("linear", n_out=4), "output": layer("copy", "a", loss=loss, target="data")}
    result = run(net)
    pairs = zip(rows(result.outputs["a"]), inputs(), strict=True)
    wanted = sum(function(np.abs(a - x), axis=-1).sum() for a, x in pairs)
    assert result.losses["output"].sum.item() == pytest.approx(wanted, rel=1e-5)


def test_sampled_softmax() -> None:
    """With all classes in the sample it is the softmax; its draws follow the distribution."""
    options = {"target": "classes", "use_transposed_weights": True, "loss": "sampling_loss"}
    results = []
    for loss_opts in ({"num_sampled": 5, "sampler": "uniform"}, {"use_full_softmax": True}):
        torch.manual_seed(0)
        model = NetworkModel({"output": layer("softmax", **options, loss_opts=loss_opts)}, SPECS)
        result = model(batch())
        result.objective().backward()
        results.append((result.objective(), model.parameter("output/W").grad))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])

    probabilities = class_probabilities("log_uniform", 20)
    assert probabilities.sum().item() == pytest.approx(1.0)
    counts, draws = torch.zeros(20), 0
    for _ in range(2000):
        sample, tries = draw_distinct(probabilities, 3)
        assert len(set(sample.tolist())) == 3
        counts[sample] += 1
        draws += tries
    assert (counts / counts.sum())[0] > 3 * (counts / counts.sum())[-1]
    assert 3.0 < draws / 2000 < 8.0


def test_noise_contrastive_estimation() -> None:
    inputs, weight, bias = torch.randn(6, 4), torch.randn(5, 4), torch.randn(5)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    settings: dict[str, Any] = {"sampler": "uniform", "remove_accidental_hits": False, "log_norm_term": 0.5}
    probability = class_probabilities("uniform", 5)[0]
    torch.manual_seed(11)
    _, draws = draw_distinct(class_probabilities("uniform", 5), 5)
    torch.manual_seed(11)
    found = sampled_loss(inputs, labels, weight, bias, num_sampled=5, nce=True, **settings)
    shift = math.log(1 - (1 - probability) ** draws) + 0.5
    logits = inputs @ weight.t() + bias - shift
    wanted = -torch.nn.functional.logsigmoid(logits.gather(1, labels[:, None]))[:, 0]
    wanted = wanted - torch.nn.functional.logsigmoid(-logits).sum(1)
    torch.testing.assert_close(found, wanted)


def test_scaled_gradient() -> None:
    net = {
        "a": layer("linear", n_out=2),
        "g": layer("scaled_grad", "a", scale=-0.5),
        "output": layer("copy", "g", loss="as_is"),
    }
    model = NetworkModel(net, SPECS)
    model(batch()).objective().backward()
    net["g"] = layer("copy", "a")
    plain = NetworkModel(net, SPECS)
    plain(batch()).objective().backward()
    torch.testing.assert_close(model.parameter("a/W").grad, -0.5 * plain.parameter("a/W").grad)


def test_attention_in_one_layer() -> None:
    net = {
        "q": layer("reduce", mode="mean", axis="T"),
        "output": layer("dot_attention", "q", base="data", base_ctx="data"),
    }
    expected = []
    for x in inputs():
        energy = np.exp(x @ x.mean(0))
        expected.append(energy @ x / energy.sum())
    check(net, expected)


def test_dot_over_time() -> None:
    net = {"output": layer("dot", ["data", "b"], red1="T", red2="T", var1="F", var2="F"), "b": layer("linear", n_out=3)}
    result = run(net)
    products = [x.T @ b for x, b in zip(inputs(), rows(result.outputs["b"]), strict=True)]
    np.testing.assert_allclose(result.outputs["output"].raw.detach().numpy(), np.stack(products), rtol=1e-4, atol=1e-5)


def test_softmax_over_a_window() -> None:
    net = {
        "start": {"class": "constant", "value": 1, "with_batch_dim": True},
        "output": layer("softmax_over_spatial", window_start="start", window_size=2),
    }
    for found, x in zip(run(net).outputs["output"].batch_major().raw, inputs(), strict=True):
        e = np.exp(x[1:3])
        wanted = np.zeros((4, 5))
        wanted[:, 1:3] = (e / e.sum(0)).T
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_condition_of_a_network() -> None:
    net = {
        "train": {"class": "train_flag"},
        "output": {
            "class": "cond", "from": [], "condition": "train",
            "true_layer": layer("eval", eval="source(0) * 2"), "false_layer": layer("eval", eval="source(0) * 3"),
        },
    }  # fmt: skip
    check(net, [3 * x for x in inputs()])


def test_tags_and_switched_axes() -> None:
    net = {
        "t": layer("reinterpret_data", set_dim_tags={"T": "keys"}),
        "output": layer("dot", ["data", "t"], red1="F", red2="F", var1="T", var2="stag:keys"),
    }
    result = run(net).outputs["output"].batch_major()
    for i, (x, n) in enumerate(zip(inputs(), LENGTHS, strict=True)):
        np.testing.assert_allclose(result.raw[i, :n, :n].numpy(), x @ x.T, rtol=1e-4, atol=1e-5)


def test_shared_parameters() -> None:
    shared = {
        "a": layer("linear", n_out=4),
        "sub": layer("subnetwork", "a", subnetwork={"output": layer("linear", n_out=4)}),
    }
    net = {**shared, "b": layer("linear", "sub", n_out=4, reuse_params="a"), "output": layer("copy", "b")}
    model = NetworkModel(net, SPECS)
    assert set(model.tf_parameters()) == {"a/W", "a/b", "sub/output/W", "sub/output/b"}
    again = layer("subnetwork", "sub", subnetwork={"output": layer("linear", n_out=4)}, reuse_params="sub")
    net = {**shared, "again": again, "output": layer("copy", "again")}
    assert len(NetworkModel(net, SPECS).tf_parameters()) == 4


def test_spectra() -> None:
    specs = {"data": TensorSpec(shape=(None,))}
    net = {
        "stft": layer("stft", frame_shift=4, frame_size=8, fft_size=16),
        "power": layer("activation", "stft", activation="abs"),
        "mel": layer("mel_filterbank", "power", n_out=5, fft_size=16, sampling_rate=16000),
        "dct": layer("dct", "mel", norm="ortho"),
        "output": layer("copy", "mel"),
    }
    torch.manual_seed(2)
    signal = torch.randn(1, 40)
    model = NetworkModel(net, specs)
    result = model(Batch({"data": signal}, {"data": torch.tensor([40])}, ["a"]), layers=["power", "dct"])
    frames = signal[0].unfold(0, 8, 4) * torch.hann_window(8)
    expected = torch.fft.rfft(torch.nn.functional.pad(frames, (0, 8))).abs()
    torch.testing.assert_close(result.outputs["power"].raw[0], expected)
    assert result.outputs["power"].time_axis.lengths.tolist() == [9]
    assert (result.outputs["mel"].raw >= 0).all()
    mel, dct = result.outputs["mel"].raw[0].double(), result.outputs["dct"].raw[0].double()
    torch.testing.assert_close(mel.square().sum(-1), dct.square().sum(-1), rtol=1e-5, atol=1e-5)  # orthonormal
    torch.testing.assert_close(dct[:, 0], mel.sum(-1) / math.sqrt(5), rtol=1e-5, atol=1e-5)


def test_range_from_length_and_masks() -> None:
    net = {"n": layer("length"), "output": layer("range_from_length", "n")}
    value = run(net).outputs["output"]
    assert value.raw.tolist() == [0, 1, 2, 3, 4]
    assert value.time_axis.lengths.tolist() == [5, 3]
    net = {"s": layer("length", "data:short"), "output": layer("seq_len_mask", seq_len_source="s", mask_value=-1.0)}
    check(net, [np.concatenate([x[:n], np.full_like(x[n:], -1)]) for x, n in zip(inputs(), (2, 1), strict=True)])


def test_forms_of_axes() -> None:
    from returnn_hydra.network.axis_strings import AxisFinder

    net = {"s": layer("split_dims", axis="F", dims=(2, 2)), "output": layer("copy", "s")}
    value = run(net).outputs["output"]
    finder = AxisFinder("test")
    batch_axis, time, first, feature = value.axes
    expected = {
        "B": [batch_axis], "T": [time], "F": [feature], "BT": [batch_axis, time], "spatial": [time, first],
        "spatial:1": [first], "s:-1": [first], "dyn": [time], "static": [first, feature], "static:-1": [feature],
        "except_time": [first, feature], "except_batch": [time, first, feature], "spatial_except_time": [first],
        "stag:extern_data:data": [time], "stag:s_split_dims0": [first], "*": list(value.axes), "T?": [time],
        "stag-single:0:split_dims": [first], "dynamic": [time],
    }  # fmt: skip
    for spec, axes in expected.items():
        assert finder.all(value, spec) == axes, spec
    assert finder.all(value, ["B", "F"]) == [batch_axis, feature]
    assert finder.all(value, None) == []
