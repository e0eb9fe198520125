"""Containers as lists, modules without values, what modules give under autocast."""

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
