"""Networks that grow over the epochs keep what they have learnt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from returnn_hydra.batch import TensorSpec
from returnn_hydra.network import NetworkError, NetworkModel
from returnn_hydra.network.schedule import NetworkSchedule

SPECS = {"data": TensorSpec(dim=5), "classes": TensorSpec(dim=3, sparse=True, same_length_as="data")}


def stack(depth: int) -> dict[str, Any]:
    net: dict[str, Any] = {
        f"h{i}": {"class": "linear", "from": f"h{i - 1}" if i else "data", "activation": "tanh", "n_out": 4}
        for i in range(depth)
    }
    net["output"] = {"class": "softmax", "from": f"h{depth - 1}", "loss": "ce", "target": "classes"}
    return net


def construct(idx: int, net_dict: dict[str, Any]) -> dict[str, Any] | None:
    assert net_dict == stack(3)
    if idx >= 2:
        return None
    return {**stack(idx + 1), "#config": {"batch_size": 100 * (idx + 1)}}


def test_pretraining() -> None:
    schedule = NetworkSchedule(stack(3), pretrain={"construction_algo": construct, "repetitions": 2})
    assert schedule.num_pretrain_epochs == 4
    assert [len(schedule.network(epoch)) for epoch in range(1, 7)] == [3, 3, 4, 4, 4, 4]
    assert schedule.config_overrides(1) == {"batch_size": 100}
    assert schedule.config_overrides(5) == {}
    assert [epoch for epoch in range(1, 7) if schedule.changes_at(epoch)] == [3, 5]


def test_get_network() -> None:
    def get_network(epoch: int, **_: Any) -> dict[str, Any]:
        return stack(min(epoch, 3))

    schedule = NetworkSchedule(get_network=get_network)
    assert "h1" not in schedule.network(1) and "h2" in schedule.network(7)


def test_parameters_go_over_by_name() -> None:
    small, large = NetworkModel(stack(1), SPECS), NetworkModel(stack(2), SPECS)
    taken = large.take_parameters(small)
    assert sorted(taken) == ["h0/W", "h0/b", "output/W", "output/b"]
    assert torch.equal(large.parameter("h0/W"), small.parameter("h0/W"))


def test_errors() -> None:
    with pytest.raises(NetworkError, match="either 'network' or 'get_network'"):
        NetworkSchedule()
    with pytest.raises(NetworkError, match="construction_algo"):
        NetworkSchedule(stack(1), pretrain="default")  # type: ignore[arg-type]
