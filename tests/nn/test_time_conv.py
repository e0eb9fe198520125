"""Convolution, pooling and grouping with lengths, against torch on each sequence alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from returnn_hydra.nn.time_conv import (
    DepthwiseTimeConv,
    MaskedConv2d,
    MaskedMaxPool2d,
    group_frames,
    strided_lengths,
)

LENGTHS = [7, 3, 6]


@given(st.integers(0, 50), st.integers(1, 7))
def test_strided_lengths_round_up(length, stride):
    assert int(strided_lengths(torch.tensor([length]), stride)) == math.ceil(length / stride)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 3, 5]))
def test_convolution_is_that_of_each_sequence(time_stride, feature_stride, kernel_size):
    conv = MaskedConv2d(2, 3, kernel_size, time_stride, feature_stride)
    images = torch.randn(3, 2, 7, 5)
    outputs, lengths = conv(images, torch.tensor(LENGTHS))
    for index, length in enumerate(LENGTHS):
        alone = F.conv2d(
            images[index : index + 1, :, :length],
            conv.conv.weight,
            conv.conv.bias,
            (time_stride, feature_stride),
            kernel_size // 2,
        )
        assert alone.shape[2] == int(lengths[index])
        torch.testing.assert_close(outputs[index, :, : int(lengths[index])], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sizes", [(1, 2), (2, 2), (3, 1)])
def test_max_pool(sizes):
    images = -torch.rand(3, 2, 7, 5) - 1.0  # all negative: zeros of the padding would win
    outputs, lengths = MaskedMaxPool2d(*sizes)(images, torch.tensor(LENGTHS))
    for index, length in enumerate(LENGTHS):
        alone = F.max_pool2d(images[index, :, :length], sizes, ceil_mode=True)
        assert torch.equal(outputs[index, :, : int(lengths[index])], alone)
        assert outputs[index, :, int(lengths[index]) :].abs().sum() == 0


def test_depthwise_convolution():
    conv = DepthwiseTimeConv(4, 3)
    features = torch.randn(3, 7, 4)
    outputs = conv(features, torch.arange(7) < torch.tensor(LENGTHS)[:, None])
    for index, length in enumerate(LENGTHS):
        alone = F.conv1d(features[index, :length].T, conv.conv.weight, conv.conv.bias, padding=1, groups=4).T
        torch.testing.assert_close(outputs[index, :length], alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_group_frames(factor):
    features = -torch.rand(3, 7, 2) - 1.0
    concat, lengths = group_frames(features, torch.tensor(LENGTHS), factor, "concat")
    largest, _ = group_frames(features, torch.tensor(LENGTHS), factor, "max")
    for index, length in enumerate(LENGTHS):
        assert int(lengths[index]) == math.ceil(length / factor)
        for frame in range(int(lengths[index])):
            group = features[index, frame * factor : min((frame + 1) * factor, length)]
            flat = torch.zeros(factor * 2)
            flat[: group.numel()] = group.flatten()
            assert torch.equal(concat[index, frame], flat)
            assert torch.equal(largest[index, frame], group.amax(0))
        assert largest[index, int(lengths[index]) :].abs().sum() == 0
