"""Building and running: errors that teach, user layers, options of all layers, descriptions."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkError, NetworkModel, register_layer
from returnn_hydra.network.describe import as_text, draw, layer_infos
from returnn_hydra.network.named_tensor import NamedTensor
from returnn_hydra.network.registry import NOT_HERE, layer_class_names

SPECS = {"data": TensorSpec(dim=4), "classes": TensorSpec(dim=3, sparse=True, same_length_as="data")}
ROOT = Path(__file__).parent.parent.parent


def layer(cls: str, frm: Any = "data", **options: Any) -> dict[str, Any]:
    return {"class": cls, "from": frm, **options}


def batch() -> Batch:
    torch.manual_seed(1)
    lengths = torch.tensor([5, 3])
    classes = torch.randint(0, 3, (2, 5), dtype=torch.int32)
    return Batch({"data": torch.randn(2, 5, 4), "classes": classes}, {"data": lengths, "classes": lengths}, ["a", "b"])


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ({"output": layer("linaer", n_out=2)}, r"output: layer class 'linaer' is .*did you mean 'linear'"),
        ({"output": layer("linear", n_outt=2)}, r"output: class 'linear' has no option 'n_outt' = 2 .*'n_out'"),
        ({"output": layer("combine", ["data"], kind="add", dropout=0.1)}, r"no option 'dropout'"),
        ({"outptu": layer("copy")}, "nothing to compute"),
        ({"output": layer("copy", "hiden"), "hidden": layer("copy")}, r"no layer 'hiden' \(did you mean 'hidden'"),
        ({"output": layer("copy", "data:clases")}, r"no stream 'clases'.*'classes'"),
        ({"output": layer("copy", "a"), "a": layer("copy", "output")}, "need each other: output -> a -> output"),
        ({"output": layer("linear", n_out=2, activation="reluu")}, r"activation 'reluu' .*'relu'"),
        ({"output": layer("linear", activation=None)}, "'n_out' is missing"),
        ({"output": layer("rec", unit="lstmm", n_out=2)}, r"unit 'lstmm' is not supported \(did you mean 'lstm"),
        ({"output": layer("rec", unit="lstm", n_out=2, unit_opts={"zone": 1})}, "option 'zone'"),
        ({"output": layer("reduce", mode="mean", axis="X")}, "axis 'X' is unknown; forms: B, T, F"),
        ({"output": layer("combine", ["data", "a"], kind="add"), "a": layer("linear", n_out=3)}, "different sizes"),
        ({"output": layer("copy", "prev:output")}, "only there inside a rec layer"),
        ({"output": layer("linear", n_out=2, forward_weights_init="glorot_unifrom")}, "unknown name 'glorot_unifrom'"),
        ({"output": layer("split_dims", axis="F", dims=(3, -1))}, "does not divide"),
        ({"output": layer("conv", n_out=2, filter_size=(3, 3), padding="same")}, "needs 2 spatial axes"),
        ({"output": layer("eval", eval="source(1)")}, r"source\(1\): there are 1 sources"),
    ],
)  # fmt: skip
def test_errors_name_the_layer_and_the_nearest(net: dict[str, Any], message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        NetworkModel(net, SPECS)


def test_losses_are_checked_when_they_are_computed() -> None:
    wrong = NetworkModel({"output": layer("softmax", loss="cee", target="classes")}, SPECS)
    with pytest.raises(NetworkError, match=r"loss 'cee' is not supported"):
        wrong(batch())
    wrong = NetworkModel({"output": layer("softmax", loss="ce", target="classes", loss_opts={"smoothing": 1})}, SPECS)
    with pytest.raises(NetworkError, match=r"no option 'smoothing' \(did you mean 'label_smoothing'"):
        wrong(batch())
    pooled = {
        "a": layer("pool", mode="max", pool_size=(2,), padding="same"),
        "output": layer("softmax", "a", loss="ce", target="classes"),
    }
    shorter = NetworkModel(pooled, SPECS)
    with pytest.raises(NetworkError, match="different lengths"):
        shorter(batch())


def test_unused_layers_are_not_built() -> None:
    model = NetworkModel({"output": layer("copy"), "broken": layer("no such class"), "#config": {"x": 1}}, SPECS)
    assert not list(model.parameters())


def test_a_layer_class_of_the_user() -> None:
    @register_layer("double_with_bias", framewise=True)
    def double_with_bias(call: Any, *, factor: float = 2.0) -> NamedTensor:
        bias = call.param("bias", (call.feature(call.x).size,), 1.0)
        return call.x.dense(call.x.raw * factor + bias)

    model = NetworkModel({"output": layer("double_with_bias", factor=3.0)}, SPECS)
    assert set(model.tf_parameters()) == {"output/bias"}
    torch.testing.assert_close(model(batch()).outputs["output"].raw, batch()["data"] * 3 + 1)
    with pytest.raises(NetworkError, match="no option 'facto'"):
        NetworkModel({"output": layer("double_with_bias", facto=3.0)}, SPECS)


def test_dropout_masks() -> None:
    def zeros(**options: Any) -> torch.Tensor:
        torch.manual_seed(0)
        model = NetworkModel({"output": layer("dropout", dropout=0.5, **options)}, {"data": TensorSpec(dim=40)})
        ones = torch.ones(6, 30, 40)
        full = Batch({"data": ones}, {"data": torch.full((6,), 30)}, [""] * 6)
        raw = model.train()(full).outputs["output"].batch_major().raw
        assert set(raw.unique().tolist()) == {0.0, 2.0}
        assert torch.equal(model.eval()(full).outputs["output"].batch_major().raw, ones)
        return raw == 0

    shared = zeros()
    assert (shared == shared[:1, :1]).all() and 5 < shared[0, 0].sum() < 35
    free = zeros(dropout_noise_shape={"*": None})
    assert 0.45 < free.float().mean() < 0.55 and not (free == free[:1]).all() and not (free == free[:, :1]).all()
    per_frame = zeros(dropout_noise_shape={"*": None, "T": 1})
    assert (per_frame == per_frame[:, :1]).all() and not (per_frame == per_frame[:1]).all()
    frames = zeros(dropout_axis="T")
    assert (frames == frames[:1, :, :1]).all()


def test_trainable_and_names() -> None:
    net = {"a": layer("linear", n_out=2, trainable=False), "output": layer("linear", "a", n_out=2, name_scope="other")}
    model = NetworkModel(net, SPECS)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["a/W", "a/b"]
    assert "other/W" in model.tf_parameters()


def test_state_dict_round_trip() -> None:
    net = {"a.b": layer("linear", n_out=4), "output": layer("batch_norm", "a.b")}
    one, two = NetworkModel(net, SPECS), NetworkModel(net, SPECS)
    one.train()(batch())
    two.load_state_dict(one.state_dict())
    assert "a.b/W" in two.tf_parameters()
    for name, value in one.tf_parameters().items():
        assert torch.equal(value, two.parameter(name))


def test_copies() -> None:
    """Averages of weights are kept in a copy of the model."""
    model = NetworkModel({"output": layer("linear", n_out=2)}, SPECS, options={"module": sys, "f": lambda: 1})
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.parameter("output/b").add_(1.0)
    assert not torch.equal(twin.parameter("output/b"), model.parameter("output/b"))
    difference = model(batch()).outputs["output"].raw - twin(batch()).outputs["output"].raw
    torch.testing.assert_close(difference, torch.ones_like(difference))


def test_forward_output_and_l2() -> None:
    net = {"a": layer("linear", n_out=3, L2=0.5), "output": layer("softmax", "a", loss="ce", target="classes")}
    model = NetworkModel(net, SPECS)
    result = model(batch())
    assert set(result.all_losses()) == {"cost:output", "error:output", "constraints"}
    squares = sum(model.parameter(name).square().sum() for name in ("a/W", "a/b"))
    torch.testing.assert_close(result.total_constraints(), 0.5 * squares)
    output = model.layer_output(result)
    assert [len(row) for row in output.per_sequence()] == [5, 3]
    with pytest.raises(NetworkError, match="was not computed"):
        model.layer_output(result, "outptu")


def test_gradients_of_layers() -> None:
    """Against finite differences, in double precision."""
    net = {
        "c": layer("conv", n_out=3, filter_size=(3,), padding="same", activation="tanh", with_bias=True),
        "l": layer("rec", "c", unit="nativelstm2", n_out=3, direction=-1),
        "z": layer("rec", "l", unit="zoneoutlstm", n_out=3),
        "n": layer("layer_norm", "z"),
        "a": layer("self_attention", "n", num_heads=1, total_key_dim=2, n_out=2),
        "w": layer("softmax_over_spatial", "a", axis="T"),
        "output": layer("eval", "w", eval="safe_log(source(0) + 1.0)", loss="as_is"),
    }
    torch.manual_seed(3)
    model = NetworkModel(net, {"data": TensorSpec(dim=2)}).double().eval()
    data = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    lengths = {"data": torch.tensor([3, 2])}

    def function(values: torch.Tensor) -> torch.Tensor:
        torch.set_default_dtype(torch.float64)
        try:
            return model(Batch({"data": values}, lengths, ["a", "b"])).losses["output"].sum
        finally:
            torch.set_default_dtype(torch.float32)

    numeric = torch.zeros_like(data)
    with torch.no_grad():
        for i in range(data.numel()):
            step = torch.zeros(data.numel(), dtype=torch.float64)
            step[i] = 1e-5
            step = step.view_as(data)
            numeric.view(-1)[i] = (function(data + step) - function(data - step)) / 2e-5
    function(data).backward()
    torch.testing.assert_close(data.grad, numeric, rtol=1e-4, atol=1e-7)


def test_all_classes_of_public_networks_are_known() -> None:
    """Ranked by use; what is not covered has its own message."""
    ranking = """
    softmax rec linear copy eval combine activation merge_dims split_dims pool compare softmax_over_spatial choice
    generic_attention decide reduce_out rnn_cell conv dropout self_attention reinterpret_data layer_norm reduce
    subnetwork slice constant batch_norm window variable positional_encoding switch gating dot length
    relative_positional_encoding squeeze pad expand_dims masked_computation hdf_dump cast unmask transposed_conv
    gather shift_axis range_in_axis stft range mel_filterbank get_last_hidden_state postfix_in_time slice_nd kenlm
    gather_nd fast_bw forced_align loss prefix_in_time swap_axes concat choice_get_beam_scores norm print
    range_from_length time_chunking time_unchunking scatter_nd edit_distance stack seq_len_mask accumulate_mean
    transpose split_batch_time split_batch_beam cond split train_flag cum_concat choice_get_src_beams dct istft
    cumsum flatten_batch search_sorted unflatten_batch edit_distance_table math_norm optimal_completions repeat
    tile twod_lstm batch_softmax combine_dims ctc_loss dot_attention fold gauss_window_attention global_train_step
    random random_state_init rec_last_output rec_unstack remove reshape resize scaled_grad
    sparse_softmax_cross_entropy_with_logits synthetic_gradient tikhonov_regularization top_k unflatten_nd
    """
    missing = set(ranking.split()) - set(layer_class_names())
    assert missing <= set(NOT_HERE)
    most_used = ranking.split()[:65]  # more than the 54 classes that 676 of 692 public networks are made of
    assert not missing & set(most_used)


def test_description(tmp_path: Path) -> None:
    unit = {"h": layer("linear", ["data:source", "prev:h"], n_out=3), "output": layer("linear", "h", n_out=2)}
    model = NetworkModel({"a": layer("linear", n_out=3), "output": layer("rec", "a", unit=unit)}, SPECS)
    infos = {info.path: info for info in layer_infos(model)}
    assert infos["output/h"].sources == ["prev:output/h"] or "prev:output/h" in infos["output/h"].sources
    assert infos["output/output"].parameters == {"W": (3, 2), "b": (2,)}
    assert infos["a"].axes == "[B, T:data, F:3]"
    assert "4 layers, 44 parameters" in as_text(list(infos.values()))
    for name in ("net.svg", "net.png"):
        draw(list(infos.values()), tmp_path / name)
    assert "<svg" in (tmp_path / "net.svg").read_text()[:400]
    assert (tmp_path / "net.png").read_bytes()[:4] == b"\x89PNG"


def test_script(tmp_path: Path) -> None:
    config = tmp_path / "my.config"
    config.write_text(
        "#!rnn.py\nimport tensorflow as tf\nnum_inputs = 4\nnum_outputs = {'data': (4, 2), 'classes': (3, 1)}\n"
        "network = {'output': {'class': 'softmax', 'loss': 'ce', 'from': 'data'}}\n"
    )
    command = [sys.executable, str(ROOT / "scripts" / "describe_network.py"), str(config)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    assert "1 layers, 15 parameters" in run.stdout
    other = tmp_path / "other.config"
    other.write_text("#!rnn.py\nbackend = 'torch'\nextern_data = {'data': {'dim': 4}}\ndef get_model(**_): pass\n")
    wrong = {
        "no `network` dict": [*command[:2], str(other)],
        "ends with .svg, .png or .pdf": [*command, "--draw", "net.foo"],
    }
    for message, words in wrong.items():
        run = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
        assert run.returncode == 2
        assert message in run.stderr
        assert "Traceback" not in run.stderr
