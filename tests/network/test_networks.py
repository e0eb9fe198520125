"""Whole networks as they are published: they build, learn, search, and give the same with and without optimisation."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkModel

AUDIO = {
    "data": TensorSpec(dim=5),
    "classes": TensorSpec(dim=7, sparse=True, available_for_inference=False),
}
HYBRID = {**AUDIO, "classes": TensorSpec(dim=7, sparse=True, available_for_inference=False, same_length_as="data")}


def layer(cls: str, frm: Any = "data", **options: Any) -> dict[str, Any]:
    return {"class": cls, "from": frm, **options}


def attention_decoder(beam: int = 3) -> dict[str, Any]:
    """The attention model of many published setups, with location-aware weights."""
    unit = {
        "output": layer("choice", "output_prob", beam_size=beam, target="classes", initial_output=0),
        "end": layer("compare", "output", value=0),
        "target_embed": layer("linear", "output", activation=None, with_bias=False, n_out=4, initial_output=0),
        "weight_feedback": layer("linear", "prev:accum_att_weights", activation=None, with_bias=False, n_out=6),
        "s_transformed": layer("linear", "s", activation=None, with_bias=False, n_out=6),
        "energy_in": layer("combine", ["base:enc_ctx", "weight_feedback", "s_transformed"], kind="add", n_out=6),
        "energy_tanh": layer("activation", "energy_in", activation="tanh"),
        "energy": layer("linear", "energy_tanh", activation=None, with_bias=False, n_out=1),
        "att_weights": layer("softmax_over_spatial", "energy"),
        "accum_att_weights": layer(
            "eval",
            ["prev:accum_att_weights", "att_weights", "base:inv_fertility"],
            eval="source(0) + source(1) * source(2) * 0.5",
            out_type={"dim": 1, "shape": (None, 1)},
        ),
        "att": layer("generic_attention", [], weights="att_weights", base="base:encoder"),
        "s": layer("rnn_cell", ["prev:target_embed", "prev:att"], unit="LSTMBlock", n_out=8),
        "readout_in": layer("linear", ["s", "prev:target_embed", "att"], activation=None, n_out=8),
        "readout": layer("reduce_out", "readout_in", mode="max", num_pieces=2),
        "output_prob": layer("softmax", "readout", target="classes", loss="ce", loss_opts={"label_smoothing": 0.05}),
    }
    return {
        "fw": layer("rec", unit="nativelstm2", n_out=6, direction=1),
        "bw": layer("rec", unit="nativelstm2", n_out=6, direction=-1),
        "pool": layer("pool", ["fw", "bw"], mode="max", padding="same", pool_size=(2,), trainable=False),
        "encoder": layer("linear", "pool", activation=None, n_out=8),
        "enc_ctx": layer("linear", "encoder", activation=None, n_out=6),
        "inv_fertility": layer("linear", "encoder", activation="sigmoid", with_bias=False, n_out=1),
        "output": layer("rec", [], unit=unit, target="classes", max_seq_len="max_len_from('base:encoder')"),
        "decision": layer("decide", "output", loss="edit_distance", target="classes"),
        "ctc": layer("softmax", "encoder", loss="ctc", target="classes", n_out=8, loss_opts={"beam_width": 1}),
    }


def transformer(beam: int = 3) -> dict[str, Any]:
    """Encoder and decoder with self attention; the decoder in a rec layer, as in the published translation setups."""
    unit = {
        "output": layer("choice", "output_prob", beam_size=beam, target="classes", initial_output=0),
        "end": layer("compare", "output", value=0),
        "embed_raw": layer("linear", "prev:output", activation=None, with_bias=False, n_out=8),
        "embed": layer("positional_encoding", "embed_raw", add_to_input=True),
        "ln1": layer("layer_norm", "embed"),
        "self": layer("self_attention", "ln1", num_heads=2, total_key_dim=8, n_out=8, attention_left_only=True),
        "self_lin": layer("linear", "self", activation=None, with_bias=False, n_out=8),
        "x1": layer("combine", ["embed", "self_lin"], kind="add", n_out=8),
        "ln2": layer("layer_norm", "x1"),
        "query0": layer("linear", "ln2", activation=None, with_bias=False, n_out=8),
        "query": layer("split_dims", "query0", axis="F", dims=(2, 4)),
        "energy": layer("dot", ["base:key", "query"], red1=-1, red2=-1, var1="T", var2="T?"),
        "weights": layer("softmax_over_spatial", "energy", energy_factor=0.5),
        "att0": layer("generic_attention", [], weights="weights", base="base:value"),
        "att": layer("merge_dims", "att0", axes="static"),
        "att_lin": layer("linear", "att", activation=None, with_bias=False, n_out=8),
        "x2": layer("combine", ["x1", "att_lin"], kind="add", n_out=8),
        "ff1": layer("linear", "x2", activation="relu", n_out=12),
        "ff2": layer("linear", "ff1", activation=None, n_out=8),
        "x3": layer("combine", ["x2", "ff2"], kind="add", n_out=8),
        "output_prob": layer("softmax", "x3", target="classes", loss="ce", loss_opts={"label_smoothing": 0.1}),
    }
    return {
        "in": layer("linear", activation=None, n_out=8),
        "pos": layer("positional_encoding", "in", add_to_input=True),
        "att": layer("self_attention", "pos", num_heads=2, total_key_dim=8, n_out=8, attention_dropout=0.0),
        "encoder": layer("combine", ["pos", "att"], kind="add", n_out=8),
        "key0": layer("linear", "encoder", activation=None, with_bias=False, n_out=8),
        "key": layer("split_dims", "key0", axis="F", dims=(2, 4)),
        "value0": layer("linear", "encoder", activation=None, with_bias=False, n_out=8),
        "value": layer("split_dims", "value0", axis="F", dims=(2, 4)),
        "output": layer("rec", [], unit=unit, target="classes", max_seq_len="max_len_from('base:encoder') * 2"),
        "decision": layer("decide", "output", loss="edit_distance", target="classes"),
    }


def hybrid() -> dict[str, Any]:
    """Bidirectional LSTM over frames with a frame-wise loss, as in the documentation."""
    net: dict[str, Any] = {}
    below: Any = "data"
    for i in range(3):
        net[f"fw{i}"] = layer("rec", below, unit="nativelstm2", n_out=6, direction=1, dropout=0.1, L2=1e-4)
        net[f"bw{i}"] = layer("rec", below, unit="nativelstm2", n_out=6, direction=-1, dropout=0.1, L2=1e-4)
        below = [f"fw{i}", f"bw{i}"]
    net["output"] = layer("softmax", below, loss="ce", target="classes")
    return net


def ctc_network() -> dict[str, Any]:
    return {
        "conv_in": layer("split_dims", axis="F", dims=(-1, 1)),
        "conv": layer(
            "conv", "conv_in", n_out=4, filter_size=(3, 3), padding="same", activation="relu", with_bias=True
        ),
        "merged": layer("merge_dims", "conv", axes="static"),
        "fw": layer("rec", "merged", unit="nativelstm2", n_out=8, direction=1),
        "bw": layer("rec", "merged", unit="nativelstm2", n_out=8, direction=-1),
        "output": layer("softmax", ["fw", "bw"], n_out=8, loss="ctc", target="classes", loss_opts={"beam_width": 1}),
    }


def language_model() -> dict[str, Any]:
    unit = {
        "input": layer("linear", "data:source", n_out=6, activation=None, with_bias=False),
        "lstm": layer("rec", "input", unit="nativelstm2", n_out=8),
        "output": layer("softmax", "lstm", loss="ce", target="data"),
    }
    return {"output": layer("rec", "data:delayed", unit=unit, target="data")}


LM = {"data": TensorSpec(dim=7, sparse=True), "delayed": TensorSpec(dim=7, sparse=True, same_length_as="data")}


def audio_batch(frames: tuple[int, ...] = (8, 5, 6), labels: tuple[int, ...] = (3, 2, 4), seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    count = len(frames)
    data = torch.randn(count, max(frames), 5, generator=generator)
    classes = torch.randint(1, 7, (count, max(labels)), generator=generator, dtype=torch.int32)
    for i in range(count):
        data[i, frames[i] :] = 0
        classes[i, labels[i] - 1 :] = 0  # ends with the label 0
    lengths = {"data": torch.tensor(frames), "classes": torch.tensor(labels)}
    return Batch({"data": data, "classes": classes}, lengths, [f"s{i}" for i in range(count)])


def lm_batch() -> Batch:
    generator = torch.Generator().manual_seed(3)
    data = torch.randint(1, 7, (3, 6), generator=generator, dtype=torch.int32)
    delayed = torch.cat([torch.zeros(3, 1, dtype=torch.int32), data[:, :-1]], 1)
    lengths = torch.tensor([6, 4, 5])
    return Batch({"data": data, "delayed": delayed}, {"data": lengths, "delayed": lengths}, ["a", "b", "c"])


NETWORKS: dict[str, Any] = {
    "attention": (attention_decoder, AUDIO, audio_batch),
    "transformer": (transformer, AUDIO, audio_batch),
    "hybrid": (hybrid, HYBRID, lambda: audio_batch((8, 5, 6), (8, 5, 6))),
    "ctc": (ctc_network, AUDIO, audio_batch),
    "lm": (language_model, LM, lm_batch),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_learns(name: str) -> None:
    torch.manual_seed(0)
    make, extern, batch = NETWORKS[name]
    model = NetworkModel(make(), extern)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    model.train()
    first, last = None, None
    for _ in range(25):
        optimizer.zero_grad()
        objective = model(batch()).objective()
        objective.backward()
        optimizer.step()
        first, last = first if first is not None else objective.item(), objective.item()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert last is not None and first is not None and last < 0.7 * first


@pytest.mark.parametrize("name", ["attention", "transformer", "lm"])
def test_layers_out_of_the_loop_change_nothing(name: str) -> None:
    torch.manual_seed(1)
    make, extern, batch = NETWORKS[name]
    fast = NetworkModel(make(), extern)
    slow = NetworkModel(make(), extern, optimize_move_layers_out=False)
    slow.load_state_dict(fast.state_dict())
    results = []
    for model in (fast, slow):
        model.eval()
        result = model(batch())
        result.objective().backward()
        results.append((result, {n: p.grad for n, p in model.named_parameters()}))
    (one, gradients), (two, other) = results
    assert one.losses.keys() == two.losses.keys()
    for path, loss in one.losses.items():
        torch.testing.assert_close(loss.sum, two.losses[path].sum)
        assert one.losses[path].count == two.losses[path].count
    for path in one.errors:
        torch.testing.assert_close(one.errors[path].sum, two.errors[path].sum)
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(gradient, other[parameter], rtol=1e-4, atol=1e-5)
    if "decision" in make():
        found = [model(batch(), search=True).outputs["decision"].raw for model in (fast, slow)]
        assert torch.equal(*found)


@pytest.mark.parametrize("name", ["attention", "transformer"])
def test_search_finds_what_was_learnt(name: str) -> None:
    torch.manual_seed(0)
    make, extern, batch = NETWORKS[name]
    model = NetworkModel(make(), extern)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(70):
        optimizer.zero_grad()
        model(batch()).objective().backward()
        optimizer.step()
    model.eval()
    result = model(batch(), search=True)
    assert result.errors["decision"].count == 9
    decision = result.outputs["decision"]
    labels = [row[:n] for row, n in zip(decision.raw.tolist(), decision.time_axis.lengths.tolist(), strict=True)]
    expected = batch()
    wanted = [
        row[: n - 1] for row, n in zip(expected["classes"].tolist(), expected.lengths["classes"].tolist(), strict=True)
    ]
    assert labels == wanted


def test_search_without_targets() -> None:
    """The forward and search tasks have no reference."""
    model = NetworkModel(attention_decoder(), AUDIO).eval()
    batch = audio_batch()
    only_data = Batch({"data": batch["data"]}, {"data": batch.lengths["data"]}, batch.seq_tags)
    result = model(only_data, search=True, with_losses=False, layers=["decision"])
    whole = model(batch, search=True)
    assert torch.equal(result.outputs["decision"].raw, whole.outputs["decision"].raw)
    assert not result.losses and not result.errors


def brute_force(model: NetworkModel, batch: Batch, beam: int, steps: int) -> list[tuple[list[int], float]]:
    """Beam search with length normalisation for one sequence, by teacher forcing every hypothesis from the start."""

    def log_probs(labels: list[int]) -> torch.Tensor:
        classes = torch.tensor([[*labels, 0]], dtype=torch.int32)
        forced = Batch(
            {"data": batch["data"], "classes": classes},
            {"data": batch.lengths["data"], "classes": torch.tensor([len(labels) + 1])},
            ["x"],
        )
        outputs = model(forced, layers=["output/output_prob"]).outputs["output/output_prob"]
        return outputs.before_activation[1].batch_major().raw[0, -1].log_softmax(-1)

    hypotheses: list[tuple[list[int], float, bool]] = [([], 0.0, False)]
    for t in range(steps):
        candidates = []
        for order, (labels, score, ended) in enumerate(hypotheses):
            if ended:
                candidates.append((score * (t + 1) / t, order, 0, labels, True))
                continue
            scores = log_probs(labels)
            for label in range(len(scores)):
                done = label == 0
                candidates.append(
                    (score + scores[label].item(), order, label, labels if done else [*labels, label], done)
                )
        candidates.sort(key=lambda c: -c[0])
        hypotheses = [(labels, score, done) for score, _, _, labels, done in candidates[:beam]]
        if all(done for _, _, done in hypotheses):
            break
    longest = max(len(labels) for labels, _, _ in hypotheses) + 1
    return [(labels, score / longest) for labels, score, _ in hypotheses]


@pytest.mark.parametrize("name", ["attention", "transformer"])
@pytest.mark.parametrize("beam", [1, 3])
def test_search_against_brute_force(name: str, beam: int) -> None:
    torch.manual_seed(5)
    make = {"attention": attention_decoder, "transformer": transformer}[name]
    model = NetworkModel(make(beam), AUDIO).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    batch = audio_batch((7,), (3,))
    limit = 4 if name == "attention" else 14
    expected = brute_force(model, batch, beam, limit)
    output = model(batch, search=True).outputs["output"].batch_major()
    scores = output.beam_axis.choice.final_scores.raw[0]
    lengths = output.time_axis.lengths[0].tolist()
    found = [row[:n] for row, n in zip(output.raw[0].tolist(), lengths, strict=True)]
    assert found == [labels for labels, _ in expected]
    torch.testing.assert_close(scores, torch.tensor([score for _, score in expected]), rtol=1e-4, atol=1e-4)


def count_tensors() -> int:
    """Tensors that carry gradients, or their history."""
    found = [o for o in gc.get_objects() if type(o) is torch.Tensor]
    return sum(tensor.requires_grad for tensor in found)


@pytest.mark.parametrize("name", NETWORKS)
def test_memory_is_free_at_once(name: str) -> None:
    """Nothing waits for the garbage collector: the activations of a step go with its result."""
    make, extern, batch = NETWORKS[name]
    model = NetworkModel(make(), extern)
    model(batch()).objective().backward()
    gc.collect()
    gc.disable()
    try:
        before = count_tensors()
        model(batch()).objective().backward()
        after = count_tensors()
    finally:
        gc.enable()
    assert after <= before
