"""Dims: equality by derivation, sizes; tensors: alignment by dims, templates."""

import copy

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

import returnn_hydra.frontend as rf
from returnn_hydra.frontend.dim import Dim, batch_dim
from returnn_hydra.frontend.extern_data import make_templates
from returnn_hydra.frontend.tensor import Tensor
from returnn_hydra.frontend.tensor_dict import TensorDict


def dyn(batch, lengths, name="t"):
    raw = torch.tensor(lengths, dtype=torch.int32)
    return Dim(Tensor(name, dims=[batch], dtype="int32", raw_tensor=raw), name=name)


def test_equality_by_derivation(ctx):
    T, S, F = ctx.T, ctx.S, ctx.F
    assert T + 2 == T + 2
    assert (T + 1) - 1 == T
    assert (T - 1) + 1 == T
    assert (T + 1) + 1 == T + 2
    assert 2 + T != T + 2
    assert T + S == T + S
    assert T + S != S + T
    assert (T * 2) // 2 == T
    assert (2 + T).sub_left(2) == T
    assert (T * F).div_right(F) == T
    assert (F * T).div_left(F) == T
    assert T.ceildiv_right(2) == T.ceildiv_right(2)
    assert Dim(3, name="a") != Dim(3, name="a")
    assert F.copy(match_priority=1) == F
    assert len({F, F.copy(match_priority=1)}) == 1
    assert copy.deepcopy(F) is F
    assert len({T + 1, T + 1, T + 2}) == 2


def test_neighbours_in_sums_and_products_are_put_together(ctx):
    T, S, F = ctx.T, ctx.S, ctx.F
    assert T + T == 2 * T
    assert 2 * F + F == 3 * F == F + 2 * F
    assert T * 2 != 2 * T
    assert T - S + S == T
    assert T * S + S == (T + 1) * S
    assert T.ceildiv_right(2).ceildiv_right(3) == T.ceildiv_right(6)
    assert (T * 2 + 4) // 2 == T + 2
    assert -1 * (-1 * T) == T
    assert sum([0, F, 0, F]) == 2 * F


def test_a_copy_from_another_dim_has_its_sizes_and_is_another_dim(ctx):
    copied = Dim(None, name="copy")
    copied.copy_from(ctx.T)
    assert copied != ctx.T
    assert copied.dyn_size.tolist() == ctx.T.dyn_size.tolist()


def test_forgotten_lengths_keep_what_they_depend_on(ctx):
    T, batch = dyn(ctx.B, [5, 3, 4]), ctx.B
    T.reset_raw()
    assert not T.is_dim_known()
    assert T.dyn_size_ext.dims == (batch,)


def test_two_uses_of_one_dim_are_told_apart_as_in_returnn():
    """The results were measured with RETURNN."""
    F, B = Dim(3, name="f"), Dim(2, name="b")
    inner = F.copy(match_priority=1)
    raw = torch.arange(9.0).reshape(3, 3)
    row = rf.convert_to_tensor([1.0, 10.0, 100.0], dims=[F])
    x = rf.convert_to_tensor(torch.randn(2, 3), dims=[B, F])
    for dims, weight in (([inner, F], raw), ([F, inner], raw.t())):
        square = rf.convert_to_tensor(weight, dims=dims)
        for axis in (F, inner):  # the name means the use with the highest priority
            torch.testing.assert_close(rf.matmul(x, square, reduce=axis).raw_tensor, x.raw_tensor @ raw)
            assert rf.reduce_sum(square, axis=axis).raw_tensor.tolist() == [9, 12, 15]
        assert torch.equal(square.copy_transpose([inner, F]).raw_tensor, raw)
        assert torch.equal(square.copy_compatible_to_dims_raw([F, B, inner]), raw.t()[:, None])
        assert torch.equal((square + square).copy_transpose([inner, F]).raw_tensor, raw * 2)
        product = (square * row).copy_transpose([inner, F]).raw_tensor
        assert torch.equal(product, raw * row.raw_tensor)  # the very same dim before an equal one
        assert rf.reduce_sum(square, axis=square.dims).raw_tensor == raw.sum()
    with pytest.raises(ValueError, match="ambiguous"):
        rf.convert_to_tensor(raw, dims=[F, F]).copy_transpose([B, inner])
    with pytest.raises(ValueError, match="twice"):
        rf.Parameter([F, F])


def test_an_axis_with_room_for_more_than_the_longest_sequence():
    B, F = Dim(2, name="b"), Dim(3, name="f")
    lengths = rf.convert_to_tensor(torch.tensor([4, 2], dtype=torch.int32), dims=[B])
    T = Dim(lengths, name="t", capacity=6, bounded_by=Dim(9, name="other"))
    assert (T.get_dim_value(), T.capacity, T.need_masking()) == (6, 6, True)
    assert (T.copy(match_priority=1).capacity, (T + 1).get_dim_value()) == (6, 5)
    raw = torch.randn(2, 6, 3)
    x = rf.convert_to_tensor(raw, dims=[B, T, F])
    frames = [raw[0, :4], raw[1, :2]]
    means = rf.reduce_mean(x, axis=T).raw_tensor
    torch.testing.assert_close(means, torch.stack([part.mean(0) for part in frames]))
    flat, _ = rf.pack_padded(x, dims=[B, T])
    assert torch.equal(flat.raw_tensor, torch.cat(frames))
    assert rf.range_over_dim(T).raw_tensor.tolist() == [0, 1, 2, 3, 4, 5]
    one = Dim(rf.constant(2, dims=(), dtype="int32"), name="one length", capacity=3)
    assert rf.reduce_sum(rf.ones([one]), axis=one).raw_tensor == 2


def test_products_over_dims_that_only_one_tensor_has():
    B, F, C = Dim(2, name="b"), Dim(3, name="f"), Dim(4, name="c")
    x = rf.convert_to_tensor(torch.randn(2, 3), dims=[B, F])
    w = rf.convert_to_tensor(torch.randn(3, 4), dims=[F, C])
    expected = torch.einsum("bf,fc->c", x.raw_tensor, w.raw_tensor)
    torch.testing.assert_close(rf.matmul(x, w, reduce=[B, F]).raw_tensor, expected)


OPERATIONS = {
    "add": (lambda d, n: d + n, lambda v, n: v + n),
    "radd": (lambda d, n: n + d, lambda v, n: v + n),
    "mul": (lambda d, n: d * n, lambda v, n: v * n),
    "ceildiv": (lambda d, n: d.ceildiv_right(n), lambda v, n: -(-v // n)),
    "floordiv": (lambda d, n: d // n, lambda v, n: v // n),
}


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=4),
    st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(1, 4)), max_size=4),
)
def test_derived_lengths_follow_the_arithmetic(lengths, steps):
    batch = Dim(len(lengths), name="B")
    base = dyn(batch, lengths)
    dim, static, values = base, Dim(lengths[0], name="s"), np.array(lengths)
    for kind, number in steps:
        on_dim, on_value = OPERATIONS[kind]
        dim, static, values = on_dim(dim, number), on_dim(static, number), on_value(values, number)
    assert dim.get_size_tensor().raw_tensor.tolist() == values.tolist()
    assert dim.get_dim_value() == values.max()
    assert static.dimension == values[0]


def test_derived_lengths_follow_new_lengths(ctx):
    half = ctx.T.ceildiv_right(2)
    assert half.get_size_tensor().raw_tensor.tolist() == [3, 2, 2]
    ctx.T.dyn_size_ext = Tensor("t", dims=[ctx.B], dtype="int32", raw_tensor=torch.tensor([9, 1, 4], dtype=torch.int32))
    assert half.get_size_tensor().raw_tensor.tolist() == [5, 1, 2]


def test_declare_same_as(ctx):
    new = Dim(None, name="new")
    assert not new.is_dim_known()
    new.declare_same_as(ctx.T)
    assert new == ctx.T
    assert new + 1 == ctx.T + 1
    assert new.get_dim_value() == 5


def test_match_priority(ctx):
    F = ctx.F
    assert rf.dim_match_priority_when_needed(F, ctx.T) is F
    inner = rf.dim_match_priority_when_needed(F, F)
    assert inner.match_priority == 1
    square = rf.Linear(F, F)
    assert [d.match_priority for d in square.weight.dims] == [1, 0]
    assert square(ctx.x).dims == ctx.x.dims


def test_masks(ctx):
    mask = ctx.T.get_mask(dim_order=[ctx.T, ctx.B])
    assert mask.dims == (ctx.T, ctx.B)
    assert mask.raw_tensor.sum(0).tolist() == [5, 3, 4]


def test_alignment_by_dims(ctx):
    left = ctx.x.copy_transpose([ctx.F, ctx.T, ctx.B])
    out = (left + ctx.b).copy_transpose([ctx.B, ctx.T, ctx.F])
    torch.testing.assert_close(out.raw_tensor, ctx.x.raw_tensor + ctx.b.raw_tensor[:, None])
    assert out.feature_dim == ctx.F
    with pytest.raises(ValueError, match="neither"):
        rf.combine(ctx.b, "add", rf.zeros([Dim(2, name="q")]), allow_broadcast_all_sources=False)
    with pytest.raises(TypeError, match="convert_to_tensor"):
        _ = ctx.x + torch.zeros(4)


def test_raw_tensor_is_checked(ctx):
    for raw, message in (
        (torch.zeros(4), "axis 0 has size 4"),
        (torch.zeros(3, dtype=torch.int32), "raw tensor is int32"),
        (torch.zeros(3, 1), "for dims"),
    ):
        with pytest.raises(ValueError, match=message):
            Tensor("x", dims=[ctx.B], dtype="float32", raw_tensor=raw)


def test_truth_of_tensors(ctx):
    assert rf.constant(True, dims=())
    with pytest.raises(ValueError, match="no single truth value"):
        bool(ctx.mask)


@pytest.mark.parametrize(
    ("options", "shape", "dtype", "time", "feature"),
    [
        ({"dim": 9}, (None, None, 9), "float32", 1, 2),
        ({"dim": 2, "sparse": True}, (None, None), "int32", 1, None),
        ({"shape": (None, 40)}, (None, None, 40), "float32", 1, 2),
        ({"shape": (40,)}, (None, 40), "float32", None, 1),
        ({"shape": ()}, (None,), "float32", None, None),
        ({"shape": (), "dtype": "string"}, (None,), "string", None, None),
        ({"dim": 10, "sparse": True, "time_dim_axis": None}, (None,), "int32", None, None),
        ({"dim": 9, "feature_dim_axis": 1}, (None, 9, None), "float32", 2, 1),
        ({"dim": 9, "batch_dim_axis": 1}, (None, None, 9), "float32", 0, 2),
        ({"dim": 3, "shape": (None, None, 3)}, (None, None, None, 3), "float32", 1, 3),
        ({"dim": 5, "sparse": True, "shape": (None,)}, (None, None), "int32", 1, None),
        ({"shape": (None, 40), "sparse_dim": Dim(3, name="z")}, (None, None, 40), "int32", 1, None),
        ({"dim_tags": [batch_dim, Dim(None, name="t"), Dim(5, name="f")]}, (None, None, 5), "float32", 1, 2),
        ({"dims": [batch_dim, Dim(None, name="t")], "dtype": "float32"}, (None, None), "float32", None, None),
    ],
)
def test_templates_as_in_returnn(options, shape, dtype, time, feature):
    tensor = make_templates({"data": options})["data"]
    assert tensor.batch_shape == shape
    assert (tensor.dtype, tensor.time_dim_axis, tensor.feature_dim_axis) == (dtype, time, feature)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, AssertionError, "needs `dim`"),
        ({"sparse": True}, AssertionError, "sparse stream needs"),
        ({"dim": 3, "shap": (3,)}, TypeError, "did you mean 'shape'"),
        ({"dims": [batch_dim]}, ValueError, "dtype must be given"),
    ],
)
def test_wrong_templates(options, error, message):
    with pytest.raises(error, match=message):
        make_templates({"data": options})


def test_vocabulary_gives_the_classes():
    class Vocab:
        labels = ["a", "b", "c"]

    tensor = make_templates({"t": {"vocab": Vocab()}})["t"]
    assert tensor.sparse_dim.dimension == 3
    assert isinstance(tensor.vocab, Vocab)
    with pytest.raises(AssertionError, match="contradicts the vocabulary"):
        make_templates({"t": {"vocab": Vocab(), "dim": 7}})


def test_tensor_dict(ctx):
    tensors = TensorDict({"x": ctx.x, "c": ctx.cls})
    raws = tensors.as_raw_tensor_dict()
    assert set(raws) == {"x", "x:size1", "c", "c:size1"}
    assert raws["x:size1"].tolist() == [5, 3, 4]
    assert tensors.as_raw_tensor_dict(include_const_sizes=True)["x:size2"] == 4
    with pytest.raises(KeyError, match="there are"):
        _ = tensors["nothing"]


def test_state_and_nested(ctx):
    state = rf.State(a=ctx.b, inner=rf.State(n=3))
    assert state.a is ctx.b
    assert state["inner"].n == 3
    assert list(state.flatten_tensors()) == [ctx.b]
    with pytest.raises(AttributeError, match="it has"):
        _ = state.nothing


def test_parametrizations(ctx):
    from returnn_hydra.frontend.run_ctx import init_train_step_run_ctx

    layer = rf.Linear(ctx.F, ctx.F2)
    rf.weight_dropout(layer, "weight", drop_prob=0.5)
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}
    init_train_step_run_ctx(train_flag=True)
    assert (layer.weight.raw_tensor == 0).any()
    assert rf.is_parametrized(layer, "weight")
    assert not (rf.remove_parametrization(layer, "weight").weight.raw_tensor == 0).any()


def test_dropout_uses_torchs_random_stream(ctx):
    from returnn_hydra.frontend.run_ctx import init_train_step_run_ctx

    init_train_step_run_ctx(train_flag=True)
    torch.manual_seed(1)
    dropped = rf.dropout(ctx.b, 0.25, axis=ctx.F).raw_tensor
    torch.manual_seed(1)
    kept = torch.rand(1, 4) >= 0.25
    torch.testing.assert_close(dropped, ctx.b.raw_tensor * kept / 0.75)


def test_specaugment_masks_stripes(ctx):
    from returnn_hydra.frontend.run_ctx import init_train_step_run_ctx

    torch.manual_seed(0)
    B, F = Dim(8, name="B"), Dim(20, name="F")
    T = dyn(B, [200, 150, 200, 120, 200, 200, 180, 200])
    x = rf.ones([B, T, F], feature_dim=F)
    init_train_step_run_ctx(train_flag=True, step=5000)
    y = rf.audio.specaugment(x, spatial_dim=T, feature_dim=F).raw_tensor
    frames, features = (y.sum(2) == 0).float().sum(1), (y.sum(1) == 0).float().sum(1)
    assert (frames > 0).all()
    assert 10 < frames.mean() < 120
    assert features.mean() > 0
    assert set(y.unique().tolist()) == {0.0, 1.0}


def test_forward_hooks(ctx):
    layer = rf.Linear(ctx.F, ctx.F2)
    handle = layer.register_forward_hook(lambda module, args, kwargs, output: output * 0.0)
    assert float(layer(ctx.x).raw_tensor.abs().sum().detach()) == 0
    handle.remove()
    assert float(layer(ctx.x).raw_tensor.abs().sum().detach()) > 0


def test_build_dict_round_trip(ctx):
    from returnn_hydra.frontend.encoder.conformer import ConformerEncoderLayer

    assert rf.build_dict(rf.Linear, with_bias=False) == {"class": "rf.Linear", "with_bias": False}
    described = rf.build_dict(ConformerEncoderLayer, num_heads=2)
    layer = rf.build_from_dict(described, Dim(8, name="m"))
    assert isinstance(layer, ConformerEncoderLayer)
    assert rf.build_from_dict({"class": "rf.relu"}) is rf.relu
    with pytest.raises(ValueError, match="has no 'Liner'"):
        rf.build_from_dict({"class": "rf.Liner"})
