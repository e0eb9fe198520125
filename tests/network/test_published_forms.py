"""Forms that published setups use: synthesis with a regression in the loop, local attention, labels per sequence."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkError, NetworkModel

SPECS = {"data": TensorSpec(dim=4), "classes": TensorSpec(dim=4, available_for_inference=False)}


def layer(cls: str, frm: Any = "data", **options: Any) -> dict[str, Any]:
    return {"class": cls, "from": frm, **options}


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(5)
    data, classes = torch.randn(2, 2, 6, 4, generator=generator)
    lengths = {"data": torch.tensor([6, 4]), "classes": torch.tensor([5, 3])}
    return Batch({"data": data, "classes": classes[:, :5]}, lengths, ["a", "b"])


def synthesis() -> dict[str, Any]:
    """Frames from their predecessors, attention over the input that knows where it was, and a flag that ends it."""
    unit = {
        "next": layer("choice", "output", beam_size=1, input_type="regression", target="classes"),
        "before": layer("slice", "prev:next", axis="F", slice_start=2),
        "s": layer("rnn_cell", ["before", "prev:context"], unit="zoneoutlstm", n_out=5),
        "padded": layer("pad", "prev:sum", axes="s:0", padding=((1, 1),), mode="constant", value=0),
        "where": layer("conv", "padded", filter_size=(3,), padding="valid", n_out=3, activation=None),
        "where_in": layer("linear", "where", n_out=4, activation=None),
        "s_in": layer("linear", "s", n_out=4, activation=None),
        "energy_in": layer("combine", ["base:encoder", "s_in", "where_in"], kind="add", n_out=4),
        "energy": layer("linear", "energy_in", n_out=1, activation="tanh"),
        "weights": layer("softmax_over_spatial", "energy"),
        "sum": layer("combine", ["prev:sum", "weights"], kind="add"),
        "context": layer("generic_attention", None, weights="weights", base="base:encoder"),
        "output": layer("linear", ["s", "context"], n_out=4, activation=None, loss="mean_l1", target="classes"),
        "entropy": layer(
            "eval",
            "weights",
            eval="-tf.reduce_sum(source(0) * safe_log(source(0)), axis=-1, keepdims=True)",
            loss="as_is",
        ),
        "stop": layer("linear", "s", n_out=1, activation="sigmoid", is_output_layer=True),
        "end": layer("compare", "stop", kind="greater", value=0.5),
    }
    return {
        "encoder": layer("linear", n_out=4, activation="tanh"),
        "output": layer("rec", [], unit=unit, target="classes", max_seq_len=5),
    }


def test_synthesis_learns(batch: Batch) -> None:
    torch.manual_seed(0)
    model = NetworkModel(synthesis(), SPECS)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    values = []
    for _ in range(30):
        result = model(batch)
        optimizer.zero_grad()
        result.losses["output/output"].sum.backward()
        optimizer.step()
        values.append(result.losses["output/output"].sum.item())
    assert values[-1] < 0.8 * values[0]
    assert result.losses["output/entropy"].count == 8  # frames of the loop, not of the encoder


def test_entropy_of_every_frame(batch: Batch) -> None:
    """Summed over the 8 frames of both; what is reduced over the encoder is one entry, not repeated for its frames."""
    net = synthesis()
    net["output"]["unit"]["weights"]["is_output_layer"] = True
    result = NetworkModel(net, SPECS).eval()(batch)
    weights = result.outputs["output/weights"]
    loop, encoder = result.outputs["output"].time_axis, weights.axes[-1]
    assert loop is not None
    frames = weights.to_axes([weights.batch_axis, loop, encoder, weights.feature])[..., 0]
    expected = sum(torch.special.entr(frames[i, t, :n]).sum() for i, n in enumerate((6, 4)) for t in range(n - 1))
    torch.testing.assert_close(result.losses["output/entropy"].sum, expected)


@pytest.mark.parametrize(("bias", "frames"), [(-9.0, 5), (9.0, 0)])
def test_synthesis_by_its_own_output(batch: Batch, bias: float, frames: int) -> None:
    """The search takes the prediction as the next input, and stops by its flag or at the limit."""
    torch.manual_seed(0)
    model = NetworkModel(synthesis(), SPECS).eval()
    with torch.no_grad():
        model.parameter("output/rec/stop/b").fill_(bias)
    output = model(batch, search=True, with_losses=False).outputs["output"].batch_major()
    assert output.time_axis is not None and output.time_axis.size == frames
    if frames:
        found = output.raw[:, 0]
        lengths = {"data": batch.lengths["data"], "classes": torch.tensor([frames, frames])}
        taught = model(Batch({"data": batch["data"], "classes": found}, lengths, ["a", "b"]))
        torch.testing.assert_close(taught.outputs["output"].batch_major().raw, found, rtol=1e-4, atol=1e-5)


def test_a_regression_has_one_hypothesis() -> None:
    net = synthesis()
    net["output"]["unit"]["next"]["beam_size"] = 4
    with pytest.raises(NetworkError, match="beam_size = 4"):
        NetworkModel(net, SPECS, search=True)


def test_attention_near_its_last_peak(batch: Batch) -> None:
    """The window of the softmax depends on the weights of the frame before, whose shape is the energies'."""
    unit = {
        "peak": layer(
            "eval",
            "prev:weights",
            eval="tf.cast(tf.argmax(source(0)[:, 0], axis=1, output_type=tf.int32), 'float32')",
            out_type={"shape": (), "dtype": "float32"},
        ),
        "energy_in": layer("combine", ["base:encoder", "data:source"], kind="add"),
        "energy": layer("linear", "energy_in", n_out=1, activation="tanh"),
        "weights": layer("softmax_over_spatial", "energy", window_start="peak", window_size=2),
        "output": layer("generic_attention", None, weights="weights", base="base:encoder"),
    }
    net = {
        "encoder": layer("reinterpret_data", set_dim_tags={"T": "encoder"}),
        "output": layer("rec", unit=unit, optimize_move_layers_out=False),
    }
    result = NetworkModel(net, SPECS)(batch)
    assert result.outputs["output"].batch_major().raw.shape == (2, 6, 4)


def test_gradients_that_are_too_large_are_left_out(batch: Batch) -> None:
    """`grad_filter` compares the largest grad^2 of a sequence."""
    net = {"output": layer("linear", n_out=2, activation=None, grad_filter=4.0, with_bias=False)}
    model = NetworkModel(net, SPECS)
    raw = model(batch).outputs["output"].batch_major().raw
    (raw[0].sum() * 1.9 + raw[1].sum() * 2.1).backward()
    expected = 1.9 * batch["data"][0].sum(0)[:, None].expand(-1, 2)
    torch.testing.assert_close(model.parameter("output/W").grad, expected)


def test_one_label_per_sequence() -> None:
    """A stream of one frame, used without its time axis."""
    net = {
        "speaker": layer("squeeze", "data:speaker", axis="T"),
        "embedding": layer("linear", "speaker", n_out=3, activation=None),
        "output": layer("linear", ["data", "embedding"], n_out=2),
    }
    model = NetworkModel(net, {"data": TensorSpec(dim=4), "speaker": TensorSpec(dim=5, sparse=True)})
    data = {"data": torch.randn(2, 3, 4), "speaker": torch.tensor([[1], [4]], dtype=torch.int32)}
    result = model(Batch(data, {"data": torch.tensor([3, 2]), "speaker": torch.tensor([1, 1])}, ["a", "b"]))
    assert result.outputs["embedding"].batch_major().raw.shape == (2, 3)


def test_losses_that_a_search_leaves_out(batch: Batch) -> None:
    net = {"output": layer("linear", n_out=4, loss="mse", target="data", loss_only_on_non_search=True)}
    model = NetworkModel(net, SPECS)
    assert set(model(batch).losses) == {"output"} and not model(batch, search=True).losses


def test_states_that_go_on_from_batch_to_batch() -> None:
    """Two halves of the sequences, one after the other, give what the whole ones do; a new epoch begins with zeros."""
    torch.manual_seed(1)
    net = {"a": layer("rec", unit="nativelstm2", n_out=3, initial_state="keep_over_epoch")}
    net["output"] = layer("rec", "a", unit="gru", n_out=2, initial_state="keep_over_epoch")
    plain = {name: {k: v for k, v in options.items() if k != "initial_state"} for name, options in net.items()}
    specs = {"data": TensorSpec(dim=4)}
    model, whole = NetworkModel(net, specs), NetworkModel(plain, specs)
    whole.load_state_dict(model.state_dict())
    data = torch.randn(2, 6, 4)

    def run(runs: NetworkModel, part: torch.Tensor) -> torch.Tensor:
        lengths = torch.full((len(part),), part.shape[1])
        result = runs(Batch({"data": part}, {"data": lengths}, [str(i) for i in range(len(part))]))
        return result.outputs["output"].batch_major().raw

    expected = run(whole, data)
    for _ in range(2):  # two epochs
        model.train()
        halves = [run(model, data[:, :3]), run(model, data[:, 3:])]
        torch.testing.assert_close(torch.cat(halves, 1), expected)
    with pytest.raises(NetworkError, match="2 before, 1 now"):
        run(model, data[:1])
    assert all(not part.requires_grad for state in model.kept_states.values() for part in state.values())


def test_options_of_activations(batch: Batch) -> None:
    net = {"output": layer("activation", activation="safe_log", opts={"eps": 0.5})}
    value = NetworkModel(net, SPECS)(batch).outputs["output"].raw
    torch.testing.assert_close(value, batch["data"].clamp(min=0.5).log())
    for wrong in ({"activation": "safe_log", "opts": {"epsilon": 1}}, {"activation": "tanh", "opts": {"eps": 1}}):
        with pytest.raises(NetworkError, match="has no option"):
            NetworkModel({"output": layer("activation", **wrong)}, SPECS)
