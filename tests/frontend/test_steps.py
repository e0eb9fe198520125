"""Step functions of both public forms, on this project's batches."""

import numpy as np
import pytest
import torch

import returnn_hydra.frontend as rf
from returnn_hydra.batch import Batch
from returnn_hydra.frontend.dim import Dim, batch_dim
from returnn_hydra.frontend.extern_data import ExternDataError, fill_from_batch, make_templates
from returnn_hydra.frontend.forward_callback import ForwardCallbackIface
from returnn_hydra.frontend.run_ctx import get_run_ctx
from returnn_hydra.frontend.steps import (
    ForwardCallbackAdapter,
    HookCallback,
    RFForwardStep,
    RFTrainStep,
    as_torch_module,
    call_with_wanted,
)
from returnn_hydra.frontend.tensor import Tensor


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return Batch(
        tensors={
            "data": torch.randn(2, 4, 3, generator=generator),
            "classes": torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.int32),
        },
        lengths={"data": torch.tensor([4, 2]), "classes": torch.tensor([4, 2])},
        seq_tags=["seq-0", "seq-1"],
        epoch=3,
    )


@pytest.fixture
def templates():
    time = Dim(None, name="time")
    return make_templates(
        {
            "data": {"dims": [batch_dim, time, Dim(3, name="in")], "dtype": "float32", "feature_dim_axis": 2},
            "classes": {
                "dims": [batch_dim, time],
                "dtype": "int32",
                "sparse_dim": Dim(2, name="classes"),
                "available_for_inference": False,
            },
        }
    )


class Model(rf.Module):
    def __init__(self, in_dim, out_dim):
        super().__init__()
        self.linear = rf.Linear(in_dim, out_dim)


def rf_step(*, model, extern_data, **_kwargs):
    data, classes = extern_data["data"], extern_data["classes"]
    logits = model.linear(data)
    ce = rf.cross_entropy(estimated=logits, estimated_type="logits", target=classes, axis=logits.feature_dim)
    ce.mark_as_loss("ce", use_normalized_loss=True)
    wrong = rf.reduce_argmax(logits, axis=logits.feature_dim) != classes
    get_run_ctx().mark_as_loss(wrong, "fer", as_error=True)


def mini_step(*, model, data, run_ctx, **_kwargs):
    logits = model(data["data"])
    lengths = data["data:size1"]
    mask = torch.arange(logits.shape[1]) < lengths[:, None]
    ce = torch.nn.functional.cross_entropy(logits[mask], data["classes"][mask].long(), reduction="sum")
    run_ctx.mark_as_loss(name="ce", loss=ce, inv_norm_factor=lengths.sum())


def test_both_forms_give_the_same_loss_and_gradient(batch, templates):
    model = as_torch_module(Model(templates["data"].feature_dim, templates["classes"].sparse_dim))
    plain = torch.nn.Linear(3, 2)
    with torch.no_grad():
        plain.weight.copy_(model.state_dict()["linear.weight"].T)
        plain.bias.copy_(model.state_dict()["linear.bias"])
    losses = RFTrainStep(rf_step, templates)(model, batch)
    mini = RFTrainStep(mini_step)(plain, batch)
    assert losses["ce"].count == 6
    assert losses["fer"].as_error
    torch.testing.assert_close(losses["ce"].sum, mini["ce"].sum)
    assert mini["ce"].mean.item() == pytest.approx(losses["ce"].mean.item())
    for loss in (losses["ce"], mini["ce"]):
        (loss.scale * loss.sum).backward()
    torch.testing.assert_close(model.rf_module.linear.weight.raw_tensor.grad.T, plain.weight.grad)


def test_context_of_a_train_step(batch, templates):
    seen = []

    def step(*, model, extern_data, run_ctx):
        ctx = rf.get_run_ctx()
        assert ctx is run_ctx
        seen.append((ctx.stage, ctx.train_flag, ctx.step, ctx.epoch, extern_data["seq_tag"].raw_tensor.tolist()))
        ctx.mark_as_loss(torch.zeros(()), "zero")

    train_step = RFTrainStep(step, templates)
    model = torch.nn.Linear(1, 1)
    for mode in (True, True, False):
        train_step(model.train(mode), batch)
    tags = ["seq-0", "seq-1"]
    assert seen == [
        ("train_step", True, 0, 3, tags),
        ("train_step", True, 1, 3, tags),
        ("train_step", False, 2, 3, tags),
    ]
    assert rf.get_run_ctx().stage == "init", "no context is left behind"


def test_functions_get_what_they_ask_for():
    available = {"model": 1, "data": 2, "run_ctx": 3}
    assert call_with_wanted(lambda model, data: (model, data), available) == (1, 2)
    assert call_with_wanted(lambda *, run_ctx, other=5: (run_ctx, other), available) == (3, 5)
    assert call_with_wanted(lambda **kw: kw, available) == available
    with pytest.raises(TypeError, match=r"nothing to pass as \['extern_data'\]"):
        call_with_wanted(lambda *, extern_data: None, available)


def test_extern_data_is_filled(batch, templates):
    filled = fill_from_batch(templates, batch)
    data = filled["data"]
    assert data.get_sequence_lengths().tolist() == [4, 2]
    assert data.dims[1] == filled["classes"].dims[1]
    assert batch_dim.get_dim_value() == 2
    assert "classes" not in fill_from_batch(templates, batch, inference=True)


def test_other_axis_orders(batch):
    filled = fill_from_batch(make_templates({"data": {"dim": 3, "batch_dim_axis": 1}}), batch)
    torch.testing.assert_close(filled["data"].raw_tensor, batch["data"].transpose(0, 1))
    filled = fill_from_batch(make_templates({"data": {"dim": 3, "feature_dim_axis": 1}}), batch)
    torch.testing.assert_close(filled["data"].raw_tensor, batch["data"].transpose(1, 2))


def test_wrong_streams(batch, templates):
    with pytest.raises(ExternDataError, match=r"declares \['audio'\]"):
        fill_from_batch(make_templates({"audio": {"dim": 3}}), batch)
    with pytest.raises(ExternDataError, match=r"has size 3, .* has 7"):
        fill_from_batch(make_templates({"data": {"dim": 7}}), batch)
    with pytest.raises(ExternDataError, match="data of shape"):
        fill_from_batch(make_templates({"data": {"dim": 7, "sparse": True}}), batch)
    other = Batch(batch.tensors, {"data": batch.lengths["data"], "classes": torch.tensor([4, 3])}, batch.seq_tags)
    with pytest.raises(ExternDataError, match="their lengths differ"):
        fill_from_batch(templates, other)


def test_forward_with_a_callback(batch, templates):
    calls = []

    class Callback:
        def init(self, *, model):
            calls.append(model)

        def process_seq(self, *, seq_tag, outputs):
            out = outputs["output"]
            assert isinstance(out.raw_tensor, np.ndarray)
            assert out.dims[0].dyn_size_ext.raw_tensor.shape == ()
            calls.append((seq_tag, out.raw_tensor.shape, outputs["score"].raw_tensor.shape))

        def finish(self):
            calls.append("end")

    def forward_step(*, model, extern_data, **_kwargs):
        x = extern_data["data"]
        assert "classes" not in extern_data
        x.mark_as_default_output()
        rf.get_run_ctx().mark_as_output(rf.reduce_sum(x, axis=x.dims[1:]), "score")

    model = as_torch_module(Model(templates["data"].feature_dim, Dim(2, name="out")))
    adapter = ForwardCallbackAdapter(Callback)
    outputs = RFForwardStep(forward_step, templates)(model, batch)
    adapter.init(model)
    rows = {name: output.per_sequence() for name, output in outputs.items()}
    for index, tag in enumerate(batch.seq_tags):
        adapter.process_seq(tag, {name: values[index] for name, values in rows.items()})
    adapter.finish()
    assert calls == [model.rf_module, ("seq-0", (4, 3), ()), ("seq-1", (2, 3), ()), "end"]


def test_beams_reach_the_callback_with_their_lengths(batch):
    def forward_step(*, model, data, run_ctx):
        beam = Dim(2, name="beam")
        lengths = torch.tensor([[3, 1], [2, 2]], dtype=torch.int32)
        size = Tensor("n", dims=[batch_dim, beam], dtype="int32", raw_tensor=lengths)
        labels = Dim(size, name="labels")
        raw = torch.arange(12).reshape(2, 2, 3)
        run_ctx.mark_as_output(raw, "hyps", dims=[batch_dim, beam, labels])

    outputs = RFForwardStep(forward_step)(torch.nn.Linear(1, 1), batch)
    first, second = outputs["hyps"].per_sequence()
    assert first.raw_tensor.shape == (2, 3)
    assert second.raw_tensor.shape == (2, 2)
    assert first.dims[1].dyn_size_ext.raw_tensor.tolist() == [3, 1]


def test_minireturnn_hooks(batch):
    def init_hook(run_ctx, **_kwargs):
        run_ctx.tags = []

    def step(*, model, data, run_ctx, **_kwargs):
        run_ctx.tags += data["seq_tag"]

    def finish_hook(ctx, **_kwargs):
        ctx.finished = True

    hooks = HookCallback(init_hook, finish_hook, epoch=4)
    model = torch.nn.Linear(1, 1)
    hooks.init(model)
    assert RFForwardStep(step, run_ctx=hooks.run_ctx)(model, batch) == {}
    hooks.finish()
    assert hooks.run_ctx.tags == ["seq-0", "seq-1"]
    assert hooks.run_ctx.finished
    assert hooks.run_ctx.epoch == 4


def test_state_dict_has_returnns_names_and_moves_with_the_module():
    in_dim = Dim(3, name="in")

    class Net(rf.Module):
        def __init__(self):
            super().__init__()
            self.layers = rf.Sequential(rf.Linear(in_dim, in_dim), rf.relu)
            self.norm = rf.BatchNorm(in_dim)

    module = as_torch_module(Net())
    names = [
        "layers.0.weight",
        "layers.0.bias",
        "norm.running_mean",
        "norm.running_variance",
        "norm.gamma",
        "norm.beta",
    ]
    assert sorted(module.state_dict()) == sorted(names)
    assert {name for name, _ in module.named_buffers()} == {"norm.running_mean", "norm.running_variance"}
    module.to(torch.float64)
    assert module.rf_module.layers[0].weight.dtype == "float64"
    assert module.rf_module.layers[0].weight.raw_tensor is dict(module.named_parameters())["layers.0.weight"]
    with pytest.raises(TypeError, match="get_model must return"):
        as_torch_module(3)


def test_the_engine_forwards_with_a_config_callback(batch, templates):
    from returnn_hydra.engine.forwarder import forward

    seen = {}

    class Callback(ForwardCallbackIface):
        def process_seq(self, *, seq_tag, outputs):
            seen[seq_tag] = outputs["output"].raw_tensor.shape

    def forward_step(*, extern_data, **_kwargs):
        extern_data["data"].mark_as_default_output()

    model = as_torch_module(Model(templates["data"].feature_dim, Dim(2, name="out")))
    batches = [(np.array([1, 0]), batch)]
    adapter = ForwardCallbackAdapter(Callback())
    assert forward(model, RFForwardStep(forward_step, templates), batches, adapter, torch.device("cpu"), {}) == 2
    assert list(seen.items()) == [("seq-1", (2, 3)), ("seq-0", (4, 3))], "in corpus order"
