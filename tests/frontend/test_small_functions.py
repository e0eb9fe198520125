"""Mixed precision's policy, answers about graphs, seeds of static draws."""

import pytest
import torch

import returnn_hydra.frontend as rf
from returnn_hydra.frontend.ambient import ambient_state
from returnn_hydra.frontend.dim import Dim

F = Dim(3, name="f")


@pytest.fixture(autouse=True)
def ambient():
    with ambient_state(run_ctx=None):
        yield


def test_policy_of_mixed_precision():
    x, labels = rf.ones([F]), rf.range_over_dim(F)
    assert rf.get_amp_policy() is None
    assert rf.amp_cast_compute(x) is x
    with rf.set_amp_policy_ctx("bfloat16"):
        assert rf.get_amp_policy() == rf.AmpPolicy("bfloat16")
        short, none, same = rf.amp_cast_compute(x, None, labels)
        assert (short.dtype, none, same) == ("bfloat16", None, labels)
        assert rf.amp_cast_float32(short).dtype == "float32"
    assert rf.get_amp_policy() is None
    rf.set_amp_policy("float16")
    assert rf.amp_cast_compute(x).dtype == "float16"
    with pytest.raises(ValueError, match="float dtype"):
        rf.set_amp_policy("int8")


def test_there_are_no_graphs_and_no_other_backends():
    assert rf.get_current_control_flow_ctx() is None
    with rf.control_flow_ctx("inner"), rf.set_static_traceable_ctx():
        assert rf.get_current_control_flow_ctx() == "inner"
        assert rf.is_static_traceable()
    assert not rf.is_static_traceable()
    assert rf.get_raw_tensor_type() is torch.Tensor
    assert rf.zeros([F], like=rf.get_tensor_layout(rf.ones([F]))).device == "cpu"
    for select in (rf.select_backend_numpy, rf.select_backend_tf, rf.select_backend_returnn_layers_tf):
        with pytest.raises(ValueError, match="is not available"):
            select()


def test_static_draws_begin_anew():
    rf.set_random_seed(3)
    seeds = [rf.get_static_step_based_seed() for _ in range(3)]
    rf.reset_step_random_state()
    assert [rf.get_static_step_based_seed() for _ in range(3)] == seeds
    assert len(rf.get_static_step_based_seed(size=4)) == 4


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"rf_use_mask": True}, True),
        ({"rf_use_mask_conv": False}, False),
        ({"rf_use_mask_pool": True}, None),
    ],
)
def test_whether_padding_is_masked(options, expected):
    with ambient_state(options=options, behavior_version=20):
        assert rf.use_mask_default(func_name="conv") is expected
        if not options:
            assert rf.use_mask_default(default=True) is True
            assert rf.use_mask_default(default=True, default_false_for_behavior_version_up_to=22) is False
            assert rf.use_mask_default(default=True, default_false_for_behavior_version_up_to=19) is True
