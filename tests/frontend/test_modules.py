"""Containers as lists, modules without values, what modules give under autocast."""

import copy

import pytest
import torch

import returnn_hydra.frontend as rf
from returnn_hydra.compat.shim.config import Config, global_config_ctx
from returnn_hydra.frontend.ambient import ambient_state
from returnn_hydra.frontend.bridge import rf_module_to_pt_module
from returnn_hydra.frontend.dim import Dim
from returnn_hydra.frontend.tensor import Tensor

IN, OUT = Dim(4, name="in"), Dim(6, name="out")


@pytest.fixture(autouse=True)
def ambient():
    with ambient_state(run_ctx=None):
        yield


def names(module):
    return [name for name, _ in module.named_parameters()]


def test_slices_of_a_list_of_modules():
    layers = rf.ModuleList([rf.Linear(IN, OUT, with_bias=False) for _ in range(4)])
    before = list(layers)
    del layers[1:3]
    assert list(layers) == [before[0], before[3]]
    assert names(layers) == ["0.weight", "1.weight"]
    layers[1:] = before[1:]
    assert list(layers) == before
    del layers[-1]
    assert len(layers) == 3
    layers["last"] = before[3]
    assert names(layers)[-1] == "last.weight"
    assert layers["last"] is before[3]


def test_a_model_on_the_meta_device_has_no_values():
    with rf.set_default_device_ctx("meta"):
        model = rf.Linear(IN, OUT)
    assert {str(p.device) for p in rf_module_to_pt_module(model).parameters()} == {"meta"}
    assert sum(p.num_elements() for p in model.parameters()) == 4 * 6 + 6


def test_a_function_of_points_is_in_the_checkpoint():
    module = rf.PiecewiseLinear({10: 1.0, 0: 0.0})
    state = rf_module_to_pt_module(module).state_dict()
    assert {name: values.tolist() for name, values in state.items()} == {"_keys": [0.0, 10.0], "_values": [0.0, 1.0]}
    assert module(5).raw_tensor == 0.5
    assert not any(p.requires_grad for p in rf_module_to_pt_module(module).parameters())


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("kind", ["Linear", "LayerNorm", "RMSNorm", "GroupNorm"])
def test_modules_under_autocast(kind, kept):
    arguments = {"Linear": (IN, OUT), "GroupNorm": (IN,)}.get(kind, (IN,))
    module = getattr(rf, kind)(*arguments, **({"num_groups": 2} if kind == "GroupNorm" else {}))
    raw = torch.randn(3, 4).to(torch.bfloat16)
    x = Tensor("x", dims=[Dim(3, name="batch"), IN], dtype="bfloat16", raw_tensor=raw, feature_dim=IN)
    with global_config_ctx(Config({"rf_module_output_keep_dtype": kept})), torch.autocast("cpu", torch.bfloat16):
        assert module(x).dtype == ("bfloat16" if kept else "float32")


@pytest.mark.parametrize(("option", "dtype"), [(True, "float32"), (False, "float16")])
def test_moments_of_short_floats(option, dtype):
    raw = torch.tensor([[300.0, -300.0, 300.0, -300.0]], dtype=torch.float16)
    x = Tensor("x", dims=[Dim(1, name="batch"), IN], dtype="float16", raw_tensor=raw)
    with global_config_ctx(Config({"rf_moments_float32": option})):
        mean, variance = rf.moments(x, IN)
    assert mean.dtype == variance.dtype == dtype
    assert torch.isfinite(variance.raw_tensor).all() == option


def test_a_scalar_is_an_output_without_dims():
    rf.init_forward_step_run_ctx()
    rf.constant(2.0, dims=()).mark_as_output("loss")
    assert rf.get_run_ctx().outputs["loss"].dims == ()


def test_copies_of_a_layer_begin_with_values_of_their_own():
    layer = rf.Linear(IN, OUT)
    layer.bias.initial = 3.0
    first, second = copy.deepcopy(layer), copy.deepcopy(layer)
    assert not torch.equal(first.weight.raw_tensor, second.weight.raw_tensor)
    assert first.in_dim is layer.in_dim
    assert torch.equal(first.bias.raw_tensor, torch.full((6,), 3.0))
    with rf.set_parameter_copy_behavior_ctx("share"):
        assert copy.deepcopy(layer).weight is layer.weight
        assert copy.copy(layer.weight) is layer.weight
    assert copy.copy(layer.weight) is not layer.weight
    with pytest.raises(ValueError, match="copy_init and share"), rf.set_parameter_copy_behavior_ctx("values"):
        pass


def test_a_parameter_begins_with_the_values_of_a_tensor():
    mean = rf.Parameter(rf.convert_to_tensor([1.0, 2.0, 3.0, 4.0], dims=[IN]), auxiliary=True)
    assert mean.raw_tensor.tolist() == [1, 2, 3, 4]
    assert not mean.raw_tensor.requires_grad
    assert rf.Parameter([], sparse_dim=OUT).dtype == "int32"


def test_assignments_to_a_part_of_a_parameter():
    buffer = rf.Parameter([OUT, IN], auxiliary=True)
    part = Dim(2, name="part")
    start = rf.constant(1, dims=(), dtype="int32")
    buffer.assign_key(axis=OUT, key=slice(start, start + 2), key_dim=part, value=rf.ones([IN, part]))
    buffer.assign_key(axis=OUT, key=5, key_dim=None, value=rf.constant(2.0, dims=[IN]))
    buffer.assign_key(axis=[OUT, IN], key=[0, slice(3, None)], key_dim=[None, Dim(1, name="one")], value=7)
    assert buffer.raw_tensor.sum(1).tolist() == [7, 4, 4, 0, 0, 8]


def test_logits_that_share_the_embedding():
    vocab = Dim(5, name="vocab")
    decoder = rf.build_from_dict(
        {"class": "returnn.frontend.decoder.transformer.TransformerDecoder", "num_layers": 1, "num_heads": 2},
        encoder_dim=None, vocab_dim=vocab, model_dim=IN, share_embedding=True,
    )  # fmt: skip
    assert decoder.logits.weight is decoder.input_embedding.weight
    state = rf_module_to_pt_module(decoder).state_dict()
    assert state["logits.weight"] is not None  # RETURNN's checkpoints have both names
    assert state["logits.weight"].data_ptr() == state["input_embedding.weight"].data_ptr()
    x = rf.convert_to_tensor(torch.randn(3, 4), dims=[Dim(3, name="n"), IN])
    expected = x.raw_tensor @ decoder.input_embedding.weight.raw_tensor.t()
    torch.testing.assert_close(decoder.logits(x).raw_tensor, expected)


def test_hooks_see_calls_and_change_results():
    first, second = rf.Linear(IN, OUT), rf.Linear(IN, OUT)
    x = rf.ones([IN])
    expected = first(x).raw_tensor
    seen = []
    note = first.register_forward_hook(lambda module, args, kwargs, result: seen.append((module, args, kwargs)))
    double = rf.hooks.setup_post_hook_on_method(first, "__call__", lambda module, args, kwargs, result: result * 2)
    torch.testing.assert_close(first(x).raw_tensor, expected * 2)
    assert len(seen) == 1
    assert seen[0] == (first, (x,), {})
    second(x)
    double.remove()
    note.remove()
    torch.testing.assert_close(first(x).raw_tensor, expected)
    assert len(seen) == 1
    rf.hooks.setup_post_hook_on_method(second, "get_default_name", lambda module, args, kwargs, result: result + "!")
    assert second.get_default_name() == "linear!"
    assert first.get_default_name() == "linear"
    assert names(first) == ["weight", "bias"]
