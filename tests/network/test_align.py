"""Alignments by Baum-Welch and Viterbi, and losses whose gradient another layer computes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.network import NetworkError, NetworkModel
from returnn_hydra.network.ctc import ctc_posteriors

SPECS = {"data": TensorSpec(dim=4), "classes": TensorSpec(dim=2, sparse=True)}


def batch() -> Batch:
    torch.manual_seed(0)
    classes = torch.tensor([[0, 1, 1], [1, 0, 0]], dtype=torch.int32)
    lengths = {"data": torch.tensor([7, 5]), "classes": torch.tensor([3, 1])}
    return Batch({"data": torch.randn(2, 7, 4), "classes": classes}, lengths, ["a", "b"])


def test_posteriors_by_enumeration() -> None:
    torch.manual_seed(1)
    scores = torch.randn(1, 4, 3)
    labels = [0, 1]
    paths = []
    for path in itertools.product(range(3), repeat=4):
        if [c for k, c in enumerate(path) if c != 2 and (k == 0 or c != path[k - 1])] == labels:
            paths.append((path, math.exp(sum(scores[0, t, c].item() for t, c in enumerate(path)))))
    total = sum(p for _, p in paths)
    expected = torch.zeros(4, 3)
    for path, p in paths:
        for t, c in enumerate(path):
            expected[t, c] += p / total
    found, loss = ctc_posteriors(scores, torch.tensor([4]), torch.tensor([labels]), torch.tensor([2]))
    torch.testing.assert_close(found[0], expected)
    assert loss.item() == pytest.approx(-math.log(total), rel=1e-5)


def softmax_net(**options: Any) -> dict[str, Any]:
    return {"class": "softmax", "from": "data", "n_out": 3, "target": "classes", **options}


def test_via_layer_has_the_gradient_of_ctc() -> None:
    direct = NetworkModel({"output": softmax_net(loss="ctc", loss_opts={"beam_width": 1})}, SPECS)
    via = NetworkModel(
        {
            "probs": softmax_net(),
            "bw": {"class": "fast_bw", "from": "probs", "align_target": "ctc", "input_type": "prob"},
            "output": {
                "class": "copy",
                "from": "probs",
                "loss": "via_layer",
                "loss_opts": {"align_layer": "bw", "loss_wrt_to_act_in": "softmax"},
            },
        },
        SPECS,
    )
    via.set_parameters({f"probs/{k}": direct.parameter(f"output/{k}").detach() for k in ("W", "b")})
    one, two = direct(batch()), via(batch())
    torch.testing.assert_close(one.objective(), two.objective())
    one.objective().backward()
    two.objective().backward()
    for k in ("W", "b"):
        torch.testing.assert_close(direct.parameter(f"output/{k}").grad, via.parameter(f"probs/{k}").grad)


def test_forced_alignment() -> None:
    net = {
        "probs": softmax_net(),
        "output": {
            "class": "forced_align", "from": "probs", "align_target": "data:classes", "topology": "ctc",
            "input_type": "prob",
        },
        "scores": {"class": "copy", "from": "output/scores", "is_output_layer": True},
    }  # fmt: skip
    result = NetworkModel(net, SPECS)(batch())
    rows = result.outputs["output"].raw.tolist()
    for row, n, labels in zip(rows, (7, 5), ([0, 1, 1], [1]), strict=True):
        assert [c for k, c in enumerate(row[:n]) if c != 2 and (k == 0 or c != row[k - 1])] == labels
    log_p = result.outputs["probs"].batch_major().raw.log()
    by_hand = [sum(log_p[i, t, rows[i][t]].item() for t in range(n)) for i, n in enumerate((7, 5))]
    assert result.outputs["scores"].raw.tolist() == pytest.approx(by_hand, rel=1e-5)


def test_unsupported_topologies_are_named() -> None:
    net = {"output": {"class": "fast_bw", "from": "data", "align_target": "sprint"}}
    with pytest.raises(NetworkError, match=r"'sprint' is not supported; nearest: 'ctc'"):
        NetworkModel(net, SPECS)
