import pytest
import torch

from returnn_hydra.models.frame_stack import FrameStack


def test_frames_side_by_side_and_zeros_behind_the_end():
    stack = FrameStack(input_dim=2, factor=3)
    features = torch.arange(1.0, 17.0).view(2, 4, 2)  # B=2, T=4
    stacked, lengths = stack(features, torch.tensor([4, 2]))
    assert stack.output_dim == 6
    assert lengths.tolist() == [2, 1]
    assert stacked[0].tolist() == [[1, 2, 3, 4, 5, 6], [7, 8, 0, 0, 0, 0]]
    assert stacked[1, 0].tolist() == [9, 10, 11, 12, 0, 0]  # the padding does not get in


def test_factor_below_one():
    with pytest.raises(ValueError, match="factor=0"):
        FrameStack(2, 0)
