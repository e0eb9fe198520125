"""Networks beside the main one (`extra.search:`), and what a search in training takes from its config."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkModel
from returnn_hydra.network.errors import NetworkError

EXTERN = {"data": TensorSpec(dim=3), "classes": TensorSpec(dim=4, sparse=True, available_for_inference=False)}
LABELS = 4


def layer(cls: str, frm: Any = "data", **options: Any) -> dict[str, Any]:
    return {"class": cls, "from": frm, **options}


def decoder(beam: int = 64, **choice: Any) -> dict[str, Any]:
    unit = {
        "output": layer("choice", "prob", beam_size=beam, target="classes", initial_output=0, **choice),
        "end": layer("compare", "output", value=0),
        "embed": layer("linear", "prev:output", n_out=3, activation=None),
        "s": layer("rnn_cell", ["embed", "base:sum"], unit="LSTMBlock", n_out=4),
        "prob": layer("softmax", "s", target="classes", loss="ce"),
    }
    return layer("rec", [], unit=unit, target="classes", max_seq_len=5, include_eos=True)


def network(**choice: Any) -> dict[str, Any]:
    net = {
        "sum": layer("reduce", "data", mode="sum", axis="T"),
        "output": decoder(),
        "extra.search:output": decoder(**choice),
        "beams": layer("copy", "extra.search:output"),
        "scores": layer("choice_get_beam_scores", "beams", is_output_layer=True),
    }
    net["extra.search:output"]["unit"]["prob"].pop("loss")
    return net


def batch(labels: list[list[int]], seed: int = 1) -> Batch:
    data = torch.randn(len(labels), 4, 3, generator=torch.Generator().manual_seed(seed))
    longest = max(map(len, labels))
    classes = torch.tensor([row + [0] * (longest - len(row)) for row in labels], dtype=torch.int32)
    lengths = {"data": torch.full((len(labels),), 4), "classes": torch.tensor([len(row) for row in labels])}
    return Batch({"data": data, "classes": classes}, lengths, [str(i) for i in range(len(labels))])


def sequences(length: int) -> Iterator[list[int]]:
    return (list(labels) for labels in product(range(LABELS), repeat=length))


def forced_score(model: NetworkModel, one: Batch, labels: list[int]) -> float:
    """Log probability of the labels, from a pass that is given them."""
    lengths = {"data": one.lengths["data"], "classes": torch.tensor([len(labels)])}
    given = Batch({"data": one["data"], "classes": torch.tensor([labels], dtype=torch.int32)}, lengths, ["x"])
    return -model(given, layers=["output"]).losses["output/prob"].sum.item()


def alone(all_of_it: Batch, i: int) -> Batch:
    count = int(all_of_it.lengths["classes"][i])
    data = {"data": all_of_it["data"][i : i + 1], "classes": all_of_it["classes"][i : i + 1, :count]}
    return Batch(data, {key: value[i : i + 1] for key, value in all_of_it.lengths.items()}, ["x"])


def test_a_search_in_training_runs_over_the_frames_of_the_reference() -> None:
    """Against the scores of all label sequences of the reference's length."""
    torch.manual_seed(0)
    model = NetworkModel(network(length_normalization=False), EXTERN).eval()
    assert not any(name.startswith("extra") for name, _ in model.named_parameters())
    both = batch([[1, 2, 3], [3, 1]])
    result = model(both, layers=["beams"])
    scores, hypotheses = result.outputs["scores"].batch_major().raw, result.outputs["beams"].batch_major()
    assert hypotheses.time_axis is not None and hypotheses.time_axis.lengths is not None
    assert hypotheses.time_axis.lengths.tolist() == [3, 2]
    for i, length in enumerate((3, 2)):
        expected = {tuple(s): forced_score(model, alone(both, i), s) for s in sequences(length)}
        best = sorted(expected.values(), reverse=True)
        torch.testing.assert_close(scores[i, : len(best)], torch.tensor(best), rtol=1e-4, atol=1e-4)
        for row, score in zip(hypotheses.raw[i, : len(best), :length].tolist(), scores[i].tolist(), strict=False):
            assert expected[tuple(row)] == pytest.approx(score, abs=1e-4)


def test_size_target_says_how_long_a_search_is() -> None:
    torch.manual_seed(0)
    net = {"sum": network()["sum"], "output": decoder(length_normalization=False)}
    net["output"]["size_target"] = "classes"
    model = NetworkModel(net, EXTERN).eval()
    output = model(batch([[1, 2, 0]]), search=True, with_losses=False).outputs["output"].batch_major()
    best = max(sequences(3), key=lambda labels: forced_score(model, batch([[1, 2, 0]]), labels))
    assert output.raw[0, 0].tolist() == best


def test_layers_are_read_from_the_main_network_unless_named() -> None:
    net = {
        "a": layer("eval", "data", eval="source(0) * 2"),
        "extra.x:a": layer("eval", "data", eval="source(0) * 3"),
        "b": layer("copy", "a"),
        "c": layer("eval", "a", eval="source(0) * 10"),
        "extra.x:c": layer("copy", "a"),
        "output": layer("copy", ["extra.x:c", "c", "extra.x:b", "extra.y:b"]),
    }
    model = NetworkModel(net, {"data": TensorSpec(dim=1)})
    one = Batch({"data": torch.ones(1, 1, 1)}, {"data": torch.tensor([1])}, ["x"])
    assert model(one).outputs["output"].batch_major().raw.tolist() == [[[3.0, 20.0, 3.0, 2.0]]]


def optimal_completion() -> dict[str, Any]:
    """Training on the labels that the model itself draws, as published."""
    unit = decoder(3, base_beam_score_scale=0.0, random_sample_scale=1.0)
    layers = unit["unit"]
    layers["table"] = layer("edit_distance_table", "output", target="layer:base:data:classes")
    layers["completions"] = layer("optimal_completions", "prev:table", target="layer:base:data:classes")
    layers["soft"] = layer(
        "eval",
        "completions",
        eval="tf.nn.softmax(-20. * tf.cast(source(0), tf.float32))",
        out_type={"dtype": "float32"},
    )
    layers["prob"]["target"] = "layer:soft"
    return {"sum": network()["sum"], "output": {**unit, "only_on_search": True}}


def test_losses_of_a_search_in_training() -> None:
    torch.manual_seed(0)
    net = optimal_completion()
    net["decision"] = layer("decide", "output", loss="edit_distance", target="classes", only_on_search=True)
    net["aux"] = layer("softmax", "sum", n_out=2, loss="as_is")
    model = NetworkModel(net, EXTERN, search_in_training=["output", "decision"])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    model.train()
    values = []
    for _ in range(40):
        result = model(batch([[1, 2, 0], [3, 0]]))
        optimizer.zero_grad()
        result.losses["output/prob"].sum.backward()
        optimizer.step()
        values.append(result.losses["output/prob"].sum.item())
    assert set(result.losses) == {"aux", "output/prob"} and set(result.errors) == {"output/prob", "decision"}
    assert sum(values[-5:]) < 0.7 * sum(values[:5])
    assert "output/prob" not in model(batch([[1, 0]]), search=True).losses


def summed(layer: Any, scores_in: Tensor, scores_base: Tensor, **other: Any) -> Tensor:
    """What `choice` does by itself."""
    assert layer.output.dim == LABELS and scores_in.shape[1] == other["base_beam_in"]
    return scores_in + scores_base


def only_the_next_label(layer: Any, scores_in: Tensor, scores_base: Tensor, batch_dim: int, **other: Any) -> Tensor:
    """Every label may only be followed by itself or the next one; reads the hypotheses so far."""
    before = layer.explicit_search_sources[0].output.placeholder.reshape(batch_dim, -1)[:, : other["base_beam_in"]]
    labels = torch.arange(LABELS)
    allowed = (labels == before[..., None]) | (labels == before[..., None] + 1)
    return torch.where(allowed, scores_in + scores_base, torch.tensor(float("-inf")))


@pytest.mark.parametrize("combine", [summed, only_the_next_label])
def test_own_function_for_scores(combine: Any) -> None:
    torch.manual_seed(0)
    net = network(length_normalization=False, custom_score_combine=combine, explicit_search_sources=["prev:output"])
    model = NetworkModel(net, EXTERN).eval()
    one = batch([[1, 2, 3]])
    found = model(one, layers=["beams"]).outputs["beams"].batch_major().raw[0, 0].tolist()
    allowed = [
        labels
        for labels in sequences(3)
        if combine is summed or all(b in (a, a + 1) for a, b in zip([0, *labels], labels, strict=False))
    ]
    assert found == max(allowed, key=lambda labels: forced_score(model, one, labels))


def test_no_gradients_behind_back_prop() -> None:
    """A loop without gradients does not take them from the layers that it is the first to ask for."""
    net = network()
    net["1"] = layer("copy", "extra.search:output", is_output_layer=True)
    net["extra.search:output"]["back_prop"] = False
    net["sum"] = layer("linear", "mean", n_out=3, activation=None)
    net["mean"] = layer("reduce", "data", mode="mean", axis="T")
    model = NetworkModel(net, EXTERN)
    result = model(batch([[1, 2]]))
    assert not result.outputs["scores"].raw.requires_grad
    result.objective().backward()
    assert model.parameter("sum/W").grad is not None


def test_unknown_layers_are_named() -> None:
    net = copy.deepcopy(network())
    net["beams"]["from"] = "extra.search:ouput"
    with pytest.raises(NetworkError, match="ouput"):
        NetworkModel(net, EXTERN)
