"""Which device a process takes; the GPUs are pretended."""

import pytest
import torch

from returnn_hydra.engine.device import select_device


@pytest.fixture
def two_gpus(monkeypatch):
    """Pretends that there are two; returns the list of those that became the current one."""
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


@pytest.mark.parametrize("name", ["auto", "gpu", "cuda"])
def test_every_rank_has_its_own_gpu_and_makes_it_the_current_one(two_gpus, name):
    assert select_device(name, 1) == torch.device("cuda:1")
    assert two_gpus == [torch.device("cuda:1")]


def test_a_gpu_by_number_becomes_the_current_one(two_gpus):
    assert select_device("cuda:1") == select_device("gpu:1") == torch.device("cuda:1")
    assert two_gpus == [torch.device("cuda:1")] * 2
    assert select_device("auto") == torch.device("cuda")
    assert len(two_gpus) == 2


def test_ranks_do_not_share_a_gpu(two_gpus):
    with pytest.raises(ValueError, match="several processes can't share it"):
        select_device("cuda:0", 1)
    with pytest.raises(ValueError, match="not on this machine, which has cpu, cuda:0, cuda:1"):
        select_device("gpu", 2)


def test_without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device("auto", 1) == select_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="expected auto, cpu, gpu"):
        select_device("gpu1x")
