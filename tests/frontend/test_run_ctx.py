"""The table of RETURNN's loss normalisation (measured there), and the checks of outputs."""

import numpy as np
import pytest
import torch

import returnn_hydra.frontend as rf
from returnn_hydra.frontend.ambient import ambient_state
from returnn_hydra.frontend.dim import Dim, batch_dim
from returnn_hydra.frontend.extern_data import make_templates
from returnn_hydra.frontend.run_ctx import RunCtx
from returnn_hydra.frontend.tensor import Tensor


@pytest.fixture
def batch():
    batch_dim.dyn_size_ext = Tensor("b", dims=[], dtype="int32", raw_tensor=torch.tensor(2, dtype=torch.int32))
    lengths = Tensor("len", dims=[batch_dim], dtype="int32", raw_tensor=torch.tensor([3, 1], dtype=torch.int32))
    time = Dim(lengths, name="time")
    raw = torch.tensor([[1.0, 2, 3], [10, 100, 100]])
    return time, lengths, raw, Tensor("x", dims=[batch_dim, time], dtype="float32", raw_tensor=raw)


def marked(loss, **options):
    ctx = RunCtx(stage="train_step", train_flag=True)
    ctx.mark_as_loss(loss, "l", **options)
    (own,), (shared,) = ctx.losses.values(), ctx.shared_losses().values()
    total = float(ctx.total_loss().raw_tensor)
    assert float(shared.sum) * shared.scale == pytest.approx(total), "the engine optimises the same"
    assert float(shared.mean) == pytest.approx(float(own.get_mean_loss().raw_tensor))
    return float(shared.sum), float(shared.count), float(shared.mean), total


def test_normalisation_table(batch):
    time, lengths, raw, x = batch
    per_seq = rf.reduce_sum(x, axis=time)
    assert marked(x) == (16, 4, 4, 16)
    assert marked(x, use_normalized_loss=True) == (16, 4, 4, 4)
    assert marked(raw) == (216, 6, 36, 216)
    assert marked(raw, dims=[batch_dim, time]) == (16, 4, 4, 16)
    assert marked(raw.mean()) == (36, 1, 36, 36)
    assert marked(per_seq) == (16, 2, 8, 16)
    assert marked(per_seq, custom_inv_norm_factor=lengths) == (16, 4, 4, 16)
    assert marked(per_seq, custom_inv_norm_factor=lengths, use_normalized_loss=True) == (16, 4, 4, 4)
    assert marked(x, scale=0.5) == (16, 4, 4, 8)


def test_minireturnn_loss(batch):
    *_, raw, _ = batch
    assert marked(raw.sum(), inv_norm_factor=torch.tensor(4)) == (216, 4, 54, 54)
    assert marked(raw.sum(), inv_norm_factor=4, scale=0.5)[3] == 27


def test_errors_are_reported_only(batch):
    *_, x = batch
    ctx = RunCtx(stage="train_step")
    ctx.mark_as_loss(x, "err", as_error=True)
    ctx.mark_as_loss(x, "off", scale=0.0)
    assert ctx.total_loss() == 0.0
    losses = ctx.shared_losses()
    assert losses["err"].as_error
    assert losses["off"].scale == 0


def test_wrong_losses(batch):
    *_, x = batch
    ctx = RunCtx(stage="train_step")
    with pytest.raises(ValueError, match="marked no loss"):
        ctx.shared_losses()
    with pytest.raises(ValueError, match="needs a tensor"):
        ctx.mark_as_loss(1.0, "x")
    ctx.mark_as_loss(x, "x")
    with pytest.raises(ValueError, match="was used before"):
        ctx.mark_as_loss(x, "x")
    with pytest.raises(ValueError, match="only in a train step"):
        RunCtx(stage="forward_step").mark_as_loss(x, "x")


def test_integer_losses_become_floats(batch):
    *_, x = batch
    ctx = RunCtx(stage="train_step")
    ctx.mark_as_loss(rf.cast(x, "int32"), "n")
    assert ctx.losses["n"].loss.dtype == "float32"


def test_outputs_without_model_outputs(batch):
    time, _, raw, x = batch
    ctx = RunCtx(stage="forward_step")
    ctx.mark_as_output(x, "a")
    ctx.mark_as_output(raw, "b")
    ctx.mark_as_output(raw.T, "c", dims=[time, batch_dim])
    outputs = ctx.shared_outputs()
    assert [len(row) for row in outputs["a"].per_sequence()] == [3, 1]
    assert [len(row) for row in outputs["b"].per_sequence()] == [3, 3], "no dims: padding is not known"
    np.testing.assert_array_equal(outputs["c"].per_sequence()[1], [10])
    with pytest.raises(ValueError, match="was used before"):
        ctx.mark_as_output(x, "a")


def test_outputs_are_checked_against_model_outputs(batch):
    time, _, _, x = batch
    feature = Dim(4, name="feature")
    expected = make_templates({"output": {"dims": [batch_dim, time, feature], "dtype": "float32"}})
    good = torch.zeros(2, 3, 4)

    def ctx():
        return RunCtx(stage="forward_step", expected_outputs=expected)

    first = ctx()
    first.mark_as_default_output(good)
    first.check_outputs_complete()
    with pytest.raises(ValueError, match=r"did not mark the outputs \['output'\]"):
        ctx().check_outputs_complete()
    with pytest.raises(ValueError, match="model_outputs has only"):
        ctx().mark_as_output(good, "other")
    with pytest.raises(ValueError, match="dtype int64"):
        ctx().mark_as_default_output(good.long())
    with pytest.raises(ValueError, match="axis 2 has size 5"):
        ctx().mark_as_default_output(torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match=r"axes|dims"):
        ctx().mark_as_output(x, "output")
    with pytest.raises(ValueError, match="the given dims"):
        ctx().mark_as_output(good.transpose(0, 1), "output", dims=[time, batch_dim, feature])


def test_train_flag_of_functions():
    x = rf.ones([Dim(1000, name="n")])
    ctx = RunCtx(stage="train_step", train_flag=True)
    with ambient_state(run_ctx=ctx):
        assert float(rf.dropout(x, 0.5).raw_tensor.min()) == 0
        with ctx.train_flag_ctx(False, func=rf.dropout):
            assert float(rf.dropout(x, 0.5).raw_tensor.min()) == 1
            assert ctx.train_flag is True
        with ctx.train_flag_ctx(False):
            assert rf.dropout(x, 0.5) is x
            assert float(rf.dropout(x, 0.5, on_forward=True).raw_tensor.min()) == 0
