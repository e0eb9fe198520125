"""Attention over the frames so far, written as separate layers; recurrent highway networks; losses over embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkError, NetworkModel

SPECS = {"data": TensorSpec(dim=4), "classes": TensorSpec(dim=5, sparse=True, available_for_inference=False)}


def layer(cls: str, frm: Any = "data", **options: Any) -> dict[str, Any]:
    return {"class": cls, "from": frm, **options}


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(5)
    data = torch.randn(2, 6, 4, generator=generator)
    classes = torch.randint(1, 5, (2, 4), generator=generator, dtype=torch.int32)
    lengths = {"data": torch.tensor([6, 4]), "classes": torch.tensor([4, 2])}
    return Batch({"data": data, "classes": classes}, lengths, ["a", "b"])


def attention(separate: bool, optimize: bool) -> dict[str, Any]:
    """Self attention in a decoder: as its layer, or with keys and values kept by `cum_concat`."""
    unit: dict[str, Any] = {
        "embed": layer("linear", "prev:output", n_out=4, activation=None),
        "context": layer("self_attention", "embed", num_heads=2, total_key_dim=4, n_out=4, attention_left_only=True),
        "prob": layer("softmax", ["context", "embed", "base:mean"], target="classes", loss="ce"),
        "output": layer("choice", "prob", target="classes", beam_size=3, initial_output=0),
        "end": layer("compare", "output", value=0),
    }
    if separate:
        history = "stag:rec-history"
        unit["context"] = layer("merge_dims", "heads", axes="static")
        unit["qkv0"] = layer("linear", "embed", n_out=12, activation=None, with_bias=False)
        unit["qkv"] = layer("split_dims", "qkv0", axis="F", dims=(2, 6))
        unit["parts"] = layer("split", "qkv", axis="F", num_splits=3)
        unit["keys"] = layer("cum_concat", "parts/1")
        unit["values"] = layer("cum_concat", "parts/2")
        unit["energy"] = layer("dot", ["parts/0", "keys"], red1="static:-1", red2="static:-1", var1=None, var2=history)
        unit["weights"] = layer("softmax_over_spatial", "energy", axis=history, energy_factor=2**-0.5)
        unit["heads"] = layer("dot", ["weights", "values"], red1=history, red2=history, var1=None, var2="static:-1")
    net = {"mean": layer("reduce", "data", mode="mean", axis="T")}
    rec = layer("rec", [], unit=unit, target="classes", max_seq_len=6, optimize_move_layers_out=optimize)
    return {**net, "output": rec, "decision": layer("decide", "output")}


@pytest.mark.parametrize("optimize", [True, False])
def test_attention_over_the_frames_so_far(batch: Batch, optimize: bool) -> None:
    """The same as the layer `self_attention`, in training and in search."""
    torch.manual_seed(3)
    whole = NetworkModel(attention(False, True), SPECS).eval()
    parts = NetworkModel(attention(True, optimize), SPECS).eval()
    names = {"output/rec/qkv0/W": "output/rec/context/QKV"}
    own = whole.tf_parameters()
    with torch.no_grad():
        own["output/rec/prob/b"][0] += 0.7  # so that the hypotheses end at different steps
    parts.set_parameters({name: own[names.get(name, name)].detach().numpy() for name in parts.tf_parameters()})
    one, two = whole(batch).losses["output/prob"].sum, parts(batch).losses["output/prob"].sum
    torch.testing.assert_close(one, two)
    gradients = [torch.autograd.grad(loss, model.parameter("output/rec/embed/W"))[0] for loss, model in
                 ((one, whole), (two, parts))]  # fmt: skip
    torch.testing.assert_close(*gradients)
    found = [
        model(batch, search=True, with_losses=False, layers=["output", "decision"]).outputs for model in (whole, parts)
    ]
    for a, b in zip(*((f["output"], f["decision"]) for f in found), strict=True):
        assert a.batch_major().raw.tolist() == b.batch_major().raw.tolist()


def test_cum_concat_needs_a_loop() -> None:
    with pytest.raises(NetworkError, match="rec layer"):
        NetworkModel({"output": layer("cum_concat")}, SPECS)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_recurrent_highway_network(batch: Batch) -> None:
    """Against the equations in numpy; alone as in a padded batch; the transform gate's bias."""
    unit_opts = {"depth": 3, "transform_bias": -2.0}
    net = {
        "output": layer("rec", unit="rhn", n_out=3, unit_opts=unit_opts),
        "last": layer("get_last_hidden_state", "output", n_out=3),
    }
    model = NetworkModel(net, SPECS, layers=["last"]).eval()
    p = {name.removeprefix("output/rec/"): v.detach().double().numpy() for name, v in model.tf_parameters().items()}
    assert sorted(p) == ["W", "b", *[f"rhn_cell/depth_{i}/W" for i in range(3)]]
    assert p["b"].tolist() == [0, 0, 0, -2, -2, -2]
    result = model(batch, layers=["last"])
    output = result.outputs["output"].batch_major().raw
    for row, (frames, count) in enumerate(zip(batch["data"].double().numpy(), (6, 4), strict=True)):
        state = np.zeros(3)
        for t in range(count):
            below = frames[t] @ p["W"] + p["b"]
            for i in range(3):
                h, gate = np.split(state @ p[f"rhn_cell/depth_{i}/W"] + (below if i == 0 else 0), 2)
                state = sigmoid(gate) * np.tanh(h) + (1 - sigmoid(gate)) * state
            np.testing.assert_allclose(output[row, t].detach().numpy(), state, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            result.outputs["last"].batch_major().raw[row].detach().numpy(), state, rtol=1e-4, atol=1e-5
        )


def test_highway_dropout_has_one_mask() -> None:
    """A state of constant size shows the mask: what is dropped in one frame is dropped in all."""
    torch.manual_seed(0)
    net = {"output": layer("rec", unit="rhn", n_out=50, unit_opts={"depth": 1, "dropout": 0.5}, initial_state=1.0)}
    model = NetworkModel(net, {"data": TensorSpec(dim=1)}).train()
    with torch.no_grad():
        for name, value in model.tf_parameters().items():
            value.zero_()
            if name.endswith("depth_0/W"):
                value[:, :50] = torch.eye(50)
                value[:, 50:] = 0
        model.parameter("output/rec/b")[50:] = 20.0  # t = 1: the state is tanh(mask * state)
    output = model(Batch({"data": torch.zeros(1, 4, 1)}, {"data": torch.tensor([4])}, ["a"])).outputs["output"]
    frames = output.batch_major().raw[0].detach()
    assert 5 < int((frames[0] == 0).sum()) < 45
    assert all(torch.equal(frame == 0, frames[0] == 0) for frame in frames)


def pair_loss(embeddings: np.ndarray, labels: np.ndarray, margin: float) -> float:
    total = 0.0
    for a, label in zip(embeddings, labels, strict=True):
        for b, other in zip(embeddings, labels, strict=True):
            distance = 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            total += 0.5 * (distance if label == other else max(margin - distance, 0))
    return total


@pytest.mark.parametrize("views", [1, 2])
def test_triplet_loss(views: int) -> None:
    """Anchor, same and different word, one vector each per sequence."""
    net = {"output": layer("linear", n_out=6 * views, activation="tanh", loss="triplet_loss", target="words",
                           loss_opts={"margin": 0.6, "multi_view_training": views == 2})}  # fmt: skip
    specs = {"data": TensorSpec(dim=3, shape=(3,)), "words": TensorSpec(dim=9, sparse=True, shape=(3,))}
    data = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    words = torch.tensor([[1, 1, 4], [2, 2, 1], [7, 7, 2]], dtype=torch.int32)
    model = NetworkModel(net, specs)
    result = model(Batch({"data": data, "words": words}, {}, ["a", "b", "c"]))
    x = np.split(result.outputs["output"].batch_major().raw.detach().double().numpy(), 3 * views, axis=1)
    labels = words.t().reshape(-1).numpy()
    groups = [x] if views == 1 else [[x[0], x[4], x[5]], [x[1], x[4], x[2]]]
    expected = sum(pair_loss(np.concatenate(group), labels, 0.6) for group in groups)
    loss = result.losses["output"]
    assert loss.sum.item() == pytest.approx(expected, rel=1e-5) and loss.count == 27 * views


def test_deep_clustering_loss(batch: Batch) -> None:
    net = {"output": layer("linear", n_out=6, activation="tanh", loss="deep_clustering", target="masks",
                           loss_opts={"embedding_dimension": 3, "nr_of_sources": 2})}  # fmt: skip
    masks = torch.nn.functional.one_hot(torch.tensor([[0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0]]), 2).float()
    masks = torch.cat([masks, 1 - masks], -1)  # two bins per frame
    specs = {**SPECS, "masks": TensorSpec(dim=4, same_length_as="data")}
    streams = {**batch.tensors, "masks": masks}
    lengths = {**batch.lengths, "masks": batch.lengths["data"]}
    result = NetworkModel(net, specs)(Batch(streams, lengths, ["a", "b"]))
    expected = 0.0
    for row, mask, count in zip(result.outputs["output"].batch_major().raw.detach(), masks, (6, 4), strict=True):
        v, y = row[:count].reshape(-1, 3), mask[:count].reshape(-1, 2)
        expected += float((v @ v.t() - y @ y.t()).square().sum())
    assert result.losses["output"].sum.item() == pytest.approx(expected, rel=1e-4)
