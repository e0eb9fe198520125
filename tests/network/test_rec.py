"""Networks as units: initial values, layers moved out of the loop, masks, and the options of search."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkError, NetworkModel

SPECS = {"data": TensorSpec(dim=4), "classes": TensorSpec(dim=5, sparse=True, same_length_as="data")}


def layer(cls: str, frm: Any = "data:source", **options: Any) -> dict[str, Any]:
    return {"class": cls, "from": frm, **options}


def batch(lengths: tuple[int, ...] = (5, 3)) -> Batch:
    generator = torch.Generator().manual_seed(2)
    data = torch.randn(len(lengths), max(lengths), 4, generator=generator)
    classes = torch.randint(0, 5, (len(lengths), max(lengths)), generator=generator, dtype=torch.int32)
    sizes = torch.tensor(lengths)
    return Batch({"data": data, "classes": classes}, {"data": sizes, "classes": sizes}, ["x"] * len(lengths))


def build(unit: dict[str, Any], move_out: bool = True, **options: Any) -> NetworkModel:
    torch.manual_seed(0)
    net = {"output": {"class": "rec", "from": "data", "unit": unit, **options}}
    model = NetworkModel(net, SPECS, optimize_move_layers_out=move_out)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.7, 0.7)
    return model


UNITS: dict[str, dict[str, Any]] = {
    "independent": {"a": layer("linear", activation="tanh", n_out=3), "output": layer("copy", ["a", "data:source"])},
    "shifted": {"a": layer("linear", activation="tanh", n_out=3), "output": layer("copy", ["prev:a", "a"])},
    "shifted_ones": {"a": layer("linear", n_out=3, initial_output=1.0), "output": layer("copy", "prev:a")},
    "recurrent": {"output": layer("linear", ["data:source", "prev:output"], activation="tanh", n_out=3)},
    "before_and_behind": {
        "in": layer("linear", activation="relu", n_out=3),
        "h": layer("linear", ["in", "prev:h"], activation="tanh", n_out=3),
        "output": layer("linear", ["h", "in"], n_out=2),
    },
    "counter": {
        "one": {"class": "constant", "value": 1.0},
        "n": layer("combine", ["one", "prev:n"], kind="add"),
        "output": layer("combine", ["data:source", "n"], kind="add"),
    },
    "step_index": {
        "i": layer("cast", ":i", dtype="float32"),
        "output": layer("combine", ["data:source", "i"], kind="mul"),
    },
    "lstm_inside": {
        "l": layer("rec", unit="nativelstm2", n_out=3),
        "output": layer("linear", ["l", "prev:l"], n_out=2),
    },
    "gru_cell": {"s": layer("rnn_cell", ["data:source", "prev:s"], unit="gru", n_out=3), "output": layer("copy", "s")},
    "state": {
        "s": layer("rnn_cell", "data:source", unit="LSTMBlock", n_out=3),
        "st": layer("get_last_hidden_state", "prev:s", n_out=6),
        "output": layer("copy", ["st", "s"]),
    },
    "self_attention": {
        "a": layer("self_attention", num_heads=2, total_key_dim=4, n_out=4, attention_left_only=True),
        "output": layer("linear", "a", n_out=3),
    },
    "positions": {"output": layer("positional_encoding", add_to_input=True)},
    "cumsum": {"output": layer("cumsum", axis="T")},
    "subnetwork": {
        "s": layer("subnetwork", subnetwork={"output": layer("linear", "data", n_out=3, activation="tanh")}),
        "output": layer("combine", ["s", "prev:s"], kind="add"),
    },
    "subnetwork_with_memory": {
        "s": layer(
            "subnetwork",
            subnetwork={"output": layer("linear", ["data", "prev:output"], n_out=3, activation="tanh")},
        ),
        "output": layer("copy", "s"),
    },
    "target": {"e": layer("linear", "data:classes", n_out=3), "output": layer("copy", ["e", "data:source"])},
    "window": {"w": layer("window", window_size=3, window_right=0), "output": layer("merge_dims", "w", axes="static")},
    "learnt_start": {
        "output": layer("linear", ["data:source", "prev:output"], n_out=3, activation="tanh", initial_output="var")
    },
    "apply_zero": {"e": layer("linear", n_out=3, initial_output="apply(0)"), "output": layer("copy", "prev:e")},
}


@pytest.mark.parametrize("name", [name for name in UNITS if name != "window"])
def test_in_the_loop_or_not(name: str) -> None:
    fast, slow = build(UNITS[name]), build(UNITS[name], move_out=False)
    slow.load_state_dict(fast.state_dict())
    one = fast(batch()).outputs["output"].zero_padding().batch_major()
    two = slow(batch()).outputs["output"].zero_padding().batch_major()
    axes = [next(a for a in two.axes if a.name == axis.name or a.kind == axis.kind != "spatial") for axis in one.axes]
    torch.testing.assert_close(one.raw, two.to_axes(axes))


def test_only_the_recurrent_part_is_in_the_loop() -> None:
    model = build(UNITS["before_and_behind"])
    model(batch())
    plans = model.net.spec("output").sub({}).memo.values()
    assert next(plan.loop for plan in plans) == {"h"}
    free = build(UNITS["lstm_inside"])
    free(batch())
    assert all(not plan.loop for plan in free.net.spec("output").sub({}).memo.values())


def test_recurrence_by_hand() -> None:
    model = build(UNITS["recurrent"])
    weight, bias = model.parameter("output/rec/output/W"), model.parameter("output/rec/output/b")
    outputs = model.layer_output(model(batch())).per_sequence()
    for x, n, found in zip(batch()["data"], (5, 3), outputs, strict=True):
        h = torch.zeros(3)
        for t in range(n):
            h = torch.tanh(torch.cat([x[t], h]) @ weight + bias)
            torch.testing.assert_close(torch.from_numpy(found[t]), h.detach())


def test_initial_values() -> None:
    ones = build(UNITS["shifted_ones"])
    first = ones(batch()).outputs["output"].batch_major().raw[:, 0]
    assert torch.equal(first, torch.ones(2, 3))
    zero = build(UNITS["apply_zero"])
    first = zero(batch()).outputs["output"].batch_major().raw[:, 0]
    torch.testing.assert_close(first, zero.parameter("output/rec/e/b").expand(2, 3))
    with pytest.raises(NetworkError, match="'initial_output' must be given"):
        build({"c": layer("reduce", mode="argmax", axis="F"), "output": layer("linear", "prev:c", n_out=2)})


def test_window_in_a_loop() -> None:
    model = build(UNITS["window"])
    raw = model(batch((4,))).outputs["output"].batch_major().raw[0]
    x = torch.cat([torch.zeros(2, 4), batch((4,))["data"][0]])
    torch.testing.assert_close(raw, torch.stack([x[t : t + 3].flatten() for t in range(4)]))


def test_masked_computation_keeps_its_state() -> None:
    """Where the mask is false, the inner LSTM does not move."""
    unit = {
        "m": layer("compare", "data:classes", kind="greater", value=1),
        "s": layer(
            "masked_computation",
            mask="m",
            unit={"class": "rec", "unit": "nativelstm2", "n_out": 3, "from": "data"},
        ),
        "output": layer("copy", "s"),
    }
    model = build(unit)
    outputs = model.layer_output(model(batch())).per_sequence()
    inner = {"output": {"class": "rec", "unit": "nativelstm2", "n_out": 3, "from": "data"}}
    alone = NetworkModel(inner, {"data": TensorSpec(dim=4)})
    ours = {name.replace("output/rec/s/", "output/"): value.detach() for name, value in model.tf_parameters().items()}
    alone.set_parameters(ours)
    for i, n in enumerate((5, 3)):
        keep = batch()["classes"][i, :n] > 1
        kept = batch()["data"][i, :n][keep][None]
        expected = torch.zeros(3)
        if keep.any():
            run = alone(Batch({"data": kept}, {"data": torch.tensor([kept.shape[1]])}, ["x"]))
            hidden = run.outputs["output"].batch_major().raw[0].detach()
        count = 0
        for t in range(n):
            if keep[t]:
                expected, count = hidden[count], count + 1
            torch.testing.assert_close(torch.from_numpy(outputs[i][t]), expected)


def decoder(**choice: Any) -> dict[str, Any]:
    unit = {
        "output": {
            "class": "choice", "from": "p", "beam_size": 3, "target": "classes", "initial_output": 0, **choice,
        },
        "end": layer("compare", "output", value=0),
        "e": layer("linear", "prev:output", n_out=4),
        "s": layer("rnn_cell", ["e"], unit="LSTMBlock", n_out=4),
        "p": layer("softmax", "s", target="classes", loss="ce"),
    }  # fmt: skip
    return {
        "output": {"class": "rec", "from": [], "unit": unit, "target": "classes", "max_seq_len": 6},
        "decision": {"class": "decide", "from": "output"},
        "scores": {"class": "choice_get_beam_scores", "from": "output"},
    }


def searched(model: NetworkModel) -> tuple[list[list[int]], torch.Tensor]:
    result = model.eval()(batch((4,)), search=True, layers=["decision", "scores", "output"])
    output = result.outputs["output"].batch_major()
    lengths = output.time_axis.lengths[0].expand(3).tolist()
    return [r[:n] for r, n in zip(output.raw[0].tolist(), lengths, strict=True)], result.outputs["scores"].raw[0]


def make_decoder(net: dict[str, Any]) -> NetworkModel:
    torch.manual_seed(4)
    model = NetworkModel(net, {**SPECS, "classes": TensorSpec(dim=5, sparse=True)})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-2, 2)
    return model


def test_search_options() -> None:
    plain, scores = searched(make_decoder(decoder(length_normalization=False)))
    assert all(a >= b for a, b in zip(scores.tolist(), scores.tolist()[1:], strict=False))
    net = decoder(length_normalization=False)
    net["output"]["include_eos"] = True
    with_end, same = searched(make_decoder(net))
    torch.testing.assert_close(scores, same)
    assert [row[: len(p)] for row, p in zip(with_end, plain, strict=True)] == plain
    assert all(len(row) == min(len(p) + 1, 6) for row, p in zip(with_end, plain, strict=True))
    half, halved = searched(make_decoder(decoder(length_normalization=False, prob_scale=0.5)))
    assert half == plain
    torch.testing.assert_close(halved, 0.5 * scores)


def test_cheating_keeps_the_reference() -> None:
    net = decoder(cheating=True, length_normalization=False)
    net["output"]["from"] = "data"  # as long as the reference
    model = make_decoder(net)
    found, _ = searched(model)
    assert found[-1] == batch((4,))["classes"][0].tolist()


def test_missing_limit_is_named() -> None:
    net = decoder()
    del net["output"]["max_seq_len"]
    with pytest.raises(NetworkError, match="max_seq_len"):
        searched(make_decoder(net))


def test_scheduled_sampling() -> None:
    model = make_decoder(decoder(scheduled_sampling={"gold_mixin_prob": 1.0}))
    model.train()
    sampled = model(batch((4,))).losses["output/p"].sum
    plain = make_decoder(decoder())
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(sampled, plain.train()(batch((4,))).losses["output/p"].sum)


def test_inner_layers_from_outside() -> None:
    net = {
        "output": {"class": "rec", "from": "data", "unit": UNITS["before_and_behind"]},
        "seen": {"class": "linear", "from": "output/h", "n_out": 2, "is_output_layer": True},
    }
    model = NetworkModel(net, SPECS)
    result = model(batch())
    assert result.outputs["seen"].time_axis is result.outputs["output"].time_axis
    assert result.outputs["seen"].time_axis.lengths.tolist() == [5, 3]


def test_layers_that_only_a_search_needs() -> None:
    """A language model that is combined with the decoder's scores."""
    net = decoder()
    net["output"]["unit"] |= {
        "lm": layer("rnn_cell", "e", unit="LSTMBlock", n_out=3),
        "lm_p": layer("softmax", "lm", target="classes"),
        "both": layer("eval", ["p", "lm_p"], eval="safe_log(source(0)) + 0.5 * safe_log(source(1))"),
    }
    net["output"]["unit"]["output"] |= {"from": "both", "input_type": "log_prob"}
    specs = {**SPECS, "classes": TensorSpec(dim=5, sparse=True)}
    assert "output/rec/lm_p/W" not in NetworkModel(net, specs).tf_parameters()
    model = NetworkModel(net, specs, search=True, layers=["decision"])
    assert "output/rec/lm_p/W" in model.tf_parameters()
    model.eval()(batch(), search=True, with_losses=False, layers=["decision"])


def test_size_target() -> None:
    """Another stream than the target says how many frames there are."""
    specs = {**SPECS, "other": TensorSpec(dim=5, sparse=True)}
    unit = {"output": layer("constant", [], value=1.0, with_batch_dim=True)}
    net = {"output": {"class": "rec", "from": [], "unit": unit, "target": "classes", "size_target": "other"}}
    given = batch((5, 3))
    tensors = {**given.tensors, "other": given["classes"][:, :2]}
    longer = Batch(tensors, {**given.lengths, "other": torch.tensor([2, 1])}, given.seq_tags)
    value = NetworkModel(net, specs)(longer).outputs["output"]
    assert value.time_axis is not None and value.time_axis.lengths.tolist() == [2, 1]
    with pytest.raises(NetworkError, match="size_target"):
        NetworkModel(
            {"output": {"class": "rec", "unit": "lstm", "n_out": 2, "from": "data", "size_target": "o"}}, SPECS
        )
