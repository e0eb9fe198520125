"""A whole training of RETURNN's TensorFlow engine, step by step: SGD on 12AX with a bidirectional LSTM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from returnn_hydra.batch import Batch, TensorSpec
from returnn_hydra.data.generating import Task12AX
from returnn_hydra.network import NetworkModel

NETWORK = {
    "fw0": {"class": "rec", "unit": "nativelstm2", "n_out": 6, "direction": 1, "from": "data"},
    "bw0": {"class": "rec", "unit": "nativelstm2", "n_out": 6, "direction": -1, "from": "data"},
    "ff": {"class": "linear", "activation": "tanh", "n_out": 5, "from": ["fw0", "bw0"], "L2": 0.001},
    "output": {"class": "softmax", "loss": "ce", "from": "ff"},
}
OBJECTIVES = [403.5144, 394.03214, 265.08466, 234.75446, 222.07181, 133.17754, 165.1465, 109.13345]
"""The log's loss of the steps of epoch 1, with L2."""
SCORES = [0.5916094108683106, 0.43466582227351463, 0.39017521533933686]
ERRORS = [0.3119435029348693, 0.14480874506471628, 0.126262624976686]
"""Of the epochs, on the training data."""


def batches(epoch: int) -> list[Batch]:
    """60 sequences in random order, at most 8 and 800 frames to a batch."""
    dataset = Task12AX(num_seqs=60).at_epoch(epoch)
    lengths = dataset.seq_lengths("data")
    assert lengths is not None
    groups: list[list[int]] = [[]]
    for index in np.random.RandomState(epoch).permutation(60).tolist():
        group = [*groups[-1], index]
        if groups[-1] and (len(group) > 8 or max(lengths[i] for i in group) * len(group) > 800):
            groups.append([index])
        else:
            groups[-1] = group
    found = []
    for group in groups:
        examples = dataset.read(np.array(group))
        sizes = torch.tensor([int(lengths[i]) for i in group])
        tensors = {}
        for key in ("data", "classes"):
            rows = [torch.as_tensor(np.asarray(row)) for row in examples.streams[key]]
            tensors[key] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        found.append(Batch(tensors, {"data": sizes, "classes": sizes}, [str(i) for i in group]))
    return found


def test_sgd_run() -> None:
    specs = {"data": TensorSpec(dim=9), "classes": TensorSpec(dim=2, sparse=True, same_length_as="data")}
    model = NetworkModel(NETWORK, specs)
    init = dict(np.load(Path(__file__).parent.parent / "data/golden/tf_lstm_init.npz"))
    init.pop("global_step")
    model.set_parameters(init)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0005)
    objectives: list[float] = []
    for epoch in (1, 2, 3):
        score, error, count = 0.0, 0.0, 0.0
        for batch in batches(epoch):
            result = model(batch)
            optimizer.zero_grad()
            result.objective().backward()
            optimizer.step()
            objectives.append(result.objective().item())
            score += result.losses["output"].sum.item()
            error += result.errors["output"].sum.item()
            count += result.losses["output"].count
        assert score / count == pytest.approx(SCORES[epoch - 1], rel=1e-5)
        assert error / count == pytest.approx(ERRORS[epoch - 1], rel=1e-5)
    assert objectives[:8] == pytest.approx(OBJECTIVES, rel=1e-5)
