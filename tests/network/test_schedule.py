"""Networks that grow over the epochs keep what they have learnt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from returnn_hydra.batch import TensorSpec
from returnn_hydra.network import NetworkError, NetworkModel
from returnn_hydra.network.carry_over import take_parameters
from returnn_hydra.network.pretrain import WrapEpochValue
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
    return {**stack(idx + 1), "#config": {"batch_size": 100 * (idx + 1), "learning_rate": 0.5 / (idx + 1)}}


def spans(schedule: NetworkSchedule, last: int) -> list[tuple[int, int]]:
    return [(stage.first, stage.last) for stage in schedule.stages(1, last)]


def test_pretraining() -> None:
    """Two steps and the whole network, two epochs each."""
    schedule = NetworkSchedule(stack(3), pretrain={"construction_algo": construct, "repetitions": 2})
    assert schedule.num_pretrain_epochs == 6
    stages = list(schedule.stages(1, 9))
    assert [(stage.first, stage.last) for stage in stages] == [(1, 2), (3, 4), (5, 9)]
    assert [dict(stage.config) for stage in stages] == [{"batch_size": 100}, {"batch_size": 200}, {}]
    assert all(stage.new_network for stage in stages)
    assert [schedule.learning_rate(epoch) for epoch in range(1, 6)] == [0.5, 0.5, 0.25, 0.25, None]
    assert [len(schedule.network(epoch)) for epoch in (1, 4, 5, 9)] == [3, 4, 4, 4]


@pytest.mark.parametrize(
    ("repetitions", "expected"),
    [
        (None, [(1, 1), (2, 2), (3, 9)]),
        ([2, 1], [(1, 2), (3, 3), (4, 9)]),
        ({"default": 2, 1: 3}, [(1, 2), (3, 5), (6, 9)]),
        ({"final": 4, 0: 2}, [(1, 2), (3, 3), (4, 9)]),
    ],
)
def test_repetitions(repetitions: Any, expected: list[tuple[int, int]]) -> None:
    assert spans(
        NetworkSchedule(stack(3), pretrain={"construction_algo": construct, "repetitions": repetitions}), 9
    ) == (expected)


def test_default_pretraining_grows_from_below() -> None:
    """What is below the output is taken away layer by layer, as long as the output does not read the data."""
    net = {
        **{
            f"{d}{i}": {"class": "rec", "unit": "lstm", "n_out": 4, "direction": 1 if d == "fw" else -1}
            for d in ("fw", "bw")
            for i in range(3)
        },
        "output": {"class": "softmax", "loss": "ce", "from": ["fw2", "bw2"]},
    }
    for d in ("fw", "bw"):
        net[f"{d}0"]["from"] = "data"
        for i in (1, 2):
            net[f"{d}{i}"]["from"] = [f"fw{i - 1}", f"bw{i - 1}"]
    schedule = NetworkSchedule(net, pretrain="default")
    assert schedule.num_pretrain_epochs == 3
    assert schedule.network(1)["output"]["from"] == ["bw0", "fw0"] and "fw1" not in schedule.network(1)
    assert schedule.network(2)["output"]["from"] == ["bw1", "fw1"] and "fw2" not in schedule.network(2)
    assert schedule.network(3) == net


def test_pretraining_from_input() -> None:
    schedule = NetworkSchedule(stack(3), pretrain={"construction_algo": "from_input"})
    assert [sorted(schedule.network(epoch)) for epoch in (1, 2, 3)] == [
        ["h0", "output"],
        ["h0", "h1", "output"],
        ["h0", "h1", "h2", "output"],
    ]
    assert schedule.network(1)["output"]["from"] == ["h0"]


def test_epoch_values() -> None:
    net = {
        **stack(1),
        "output": {"class": "softmax", "from": "h0", "dropout": WrapEpochValue(lambda epoch: 0.1 * epoch)},
    }
    options = {"construction_algo": "no_network_modifications", "repetitions": 3}
    schedule = NetworkSchedule(net, pretrain=options)
    assert [schedule.network(epoch)["output"]["dropout"] for epoch in (1, 2, 3, 4)] == pytest.approx(
        [0.1, 0.2, 0.3, 0.3]
    )
    assert spans(schedule, 4) == [(1, 1), (2, 2), (3, 4)]


def test_get_network() -> None:
    def get_network(epoch: int, **_: Any) -> dict[str, Any]:
        return {**stack(min(epoch, 3)), "#copy_param_mode": "subset"}

    schedule = NetworkSchedule(get_network=get_network)
    assert "h1" not in schedule.network(1) and "h2" in schedule.network(7)
    assert spans(schedule, 7) == [(1, 1), (2, 2), (3, 7)]
    assert {stage.copy_mode for stage in schedule.stages(1, 7)} == {"subset"}


def test_same_functions_are_no_change() -> None:
    """`get_network` makes new function objects at every call; what they hold decides."""

    def get_network(epoch: int) -> dict[str, Any]:
        strength = epoch // 3
        return {"output": {"class": "eval", "eval": lambda source: source(0) * strength}}

    assert spans(NetworkSchedule(get_network=get_network), 7) == [(1, 2), (3, 5), (6, 7)]


def test_only_the_settings_change() -> None:
    def get_network(epoch: int) -> dict[str, Any]:
        return {**stack(2), "#config": {"batch_size": 10 * epoch}}

    stages = list(NetworkSchedule(get_network=get_network).stages(1, 3))
    assert [stage.new_network for stage in stages] == [True, False, False]


def test_parameters_go_over_by_name() -> None:
    small, large = NetworkModel(stack(1), SPECS), NetworkModel(stack(2), SPECS)
    taken = take_parameters(large, small)
    assert sorted(taken) == ["h0/W", "h0/b", "output/W", "output/b"]
    assert torch.equal(large.parameter("h0/W"), small.parameter("h0/W"))
    assert take_parameters(large, small, leave_layers=["output"]) == ["h0/W", "h0/b"]
    assert take_parameters(large, small, "reset") == []


def blstm(size: int, **options: Any) -> dict[str, Any]:
    lstm = {"class": "rec", "unit": "lstm", "n_out": size, "from": "data", **options}
    return {
        "fw": {**lstm, "direction": 1},
        "bw": {**lstm, "direction": -1},
        "output": {"class": "softmax", "from": ["fw", "bw"], "loss": "ce", "target": "classes"},
    }


def test_a_wider_layer_takes_the_narrow_one_in_blocks() -> None:
    """Every gate of the LSTM, and every source of the output, has its own place in the larger matrix."""
    small, large = NetworkModel(blstm(2), SPECS), NetworkModel(blstm(3), SPECS)
    assert take_parameters(large, small) == ["output/b"]
    take_parameters(large, small, "subset")
    for gate in range(4):
        ours, theirs = slice(3 * gate, 3 * gate + 2), slice(2 * gate, 2 * gate + 2)
        assert torch.equal(large.parameter("fw/rec/W")[:, ours], small.parameter("fw/rec/W")[:, theirs])
        assert torch.equal(large.parameter("fw/rec/W_re")[:2, ours], small.parameter("fw/rec/W_re")[:, theirs])
        assert torch.equal(large.parameter("bw/rec/b")[ours], small.parameter("bw/rec/b")[theirs])
    assert torch.equal(large.parameter("output/W")[[0, 1, 3, 4]], small.parameter("output/W"))
    own = NetworkModel(blstm(3, custom_param_importer="subset"), SPECS)
    assert "output/W" not in take_parameters(own, small) and torch.equal(
        own.parameter("bw/rec/b"), own.parameter("fw/rec/b")
    )


def test_errors() -> None:
    with pytest.raises(NetworkError, match="either 'network' or 'get_network'"):
        NetworkSchedule()
    for options, message in [
        ({"construction_algo": lambda idx, net_dict: net_dict}, "never None"),
        ({"construction_alg": construct}, "did you mean 'construction_algo'"),
        ({"construction_algo": "from_outpt"}, "from_output"),
        ({"copy_param_mode": "all"}, "copy_param_mode = 'all'"),
        ({"greedy": True}, "greedy"),
        ({"construction_algo": construct, "repetitions": [1, 2, 3, 4]}, "at most 3 numbers"),
        ({"construction_algo": construct, "repetitions": {7: 1}}, "steps 0 to 2"),
    ]:
        with pytest.raises(NetworkError, match=message):
            NetworkSchedule(stack(3), pretrain=options)
    with pytest.raises(NetworkError, match="pretrain = 'fast'"):
        NetworkSchedule(stack(1), pretrain="fast")
    with pytest.raises(NetworkError, match="#trainable"):
        list(NetworkSchedule(get_network=lambda epoch: {**stack(1), "#trainable": False}).stages(1, 2))
