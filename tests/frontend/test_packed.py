"""Packed tensors have the values of the padded ones."""

import pytest
import torch

import returnn_hydra.frontend as rf


def test_the_way_there_and_back(ctx):
    x = ctx.x.copy()
    packed = rf.pack(x)
    assert rf.is_packed(packed)
    assert not rf.is_packed(packed * 2)
    assert packed.dims == x.dims
    flat, dim = rf.packed_flat_content(packed)
    expected, _ = rf.pack_padded(x, dims=[ctx.B, ctx.T])
    torch.testing.assert_close(flat.raw_tensor, expected.raw_tensor)
    back = rf.pack_import(flat, batch_dim=ctx.B, spatial_dim=ctx.T, packed_dim=dim)
    assert rf.packed_regap(back, 3) is back
    torch.testing.assert_close(rf.unpack(back).raw_tensor, x.copy_masked(0).copy_transpose(back.dims).raw_tensor)
    assert not rf.is_packed(rf.unpack(back))


def test_what_can_not_be_packed(ctx):
    with pytest.raises(ValueError, match="no dims with lengths"):
        rf.pack(rf.ones([ctx.F]))
    with pytest.raises(ValueError, match="is not packed"):
        rf.packed_flat_content(ctx.x)
