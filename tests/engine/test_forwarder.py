import numpy as np
import pytest
import torch
from torch import nn

from returnn_hydra.batch import Batch, Output, TensorSpec
from returnn_hydra.data.dataset import DataError
from returnn_hydra.engine.callback import ForwardCallback
from returnn_hydra.engine.errors import OutOfMemoryError
from returnn_hydra.engine.forwarder import check_outputs, forward


class Collect(ForwardCallback):
    def __init__(self):
        self.calls = []

    def init(self, model):
        self.calls.append(("init", model.training))

    def process_seq(self, seq_tag, outputs):
        self.calls.append((seq_tag, {name: array.tolist() for name, array in outputs.items()}))

    def finish(self):
        self.calls.append(("finish",))


def batch_of(*rows):
    lengths = torch.tensor([len(values) for _, values in rows])
    tensor = torch.zeros(len(rows), int(lengths.max()), 1)
    for row, (_, values) in enumerate(rows):
        tensor[row, : len(values), 0] = torch.tensor(values)
    return Batch({"data": tensor}, {"data": lengths}, [tag for tag, _ in rows])


def double(model, batch):
    return {"output": Output(2 * batch["data"], batch.lengths["data"])}


def test_corpus_order_without_padding_and_batch_axis():
    callback = Collect()
    batches = [
        (np.array([2, 0]), batch_of(("c", [5.0, 6.0, 7.0]), ("a", [1.0]))),
        (np.array([1]), batch_of(("b", [2.0, 3.0]))),
    ]
    model = nn.Linear(1, 1)
    assert forward(model, double, batches, callback, torch.device("cpu"), {}) == 3
    assert callback.calls == [
        ("init", False),
        ("a", {"output": [[2.0]]}),
        ("b", {"output": [[4.0], [6.0]]}),
        ("c", {"output": [[10.0], [12.0], [14.0]]}),
        ("finish",),
    ]


def test_out_of_memory_halves_the_batch_and_loses_nothing():
    sizes = []

    def step(model, batch):
        sizes.append(batch.num_seqs)
        if batch.num_seqs > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory (a made-up one)")
        return double(model, batch)

    rows = [(f"s{i}", [float(i)] * (i + 1)) for i in range(5)]
    whole, halved = Collect(), Collect()
    forward(nn.Linear(1, 1), double, [(np.arange(5), batch_of(*rows))], whole, torch.device("cpu"), {})
    forward(nn.Linear(1, 1), step, [(np.arange(5), batch_of(*rows))], halved, torch.device("cpu"), {})
    assert halved.calls == whole.calls
    assert sizes == [5, 3, 2, 1, 2]


def test_one_sequence_that_does_not_fit_is_an_error():
    def step(model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory (a made-up one)")

    with pytest.raises(OutOfMemoryError, match="longest sequence 'a' with 1 frames"):
        forward(nn.Linear(1, 1), step, [(np.arange(1), batch_of(("a", [1.0])))], Collect(), torch.device("cpu"), {})


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"other": np.zeros((3, 2), "float32")}, "other"),
        ({"output": np.zeros((3, 5), "float32")}, r"shape \(3, 5\)"),
        ({"output": np.zeros(2, "float32")}, r"shape \(2,\)"),
        ({"output": np.zeros((3, 2), "int64")}, "int64"),
    ],
)
def test_wrong_outputs_name_the_sequence(outputs, message):
    with pytest.raises(DataError, match=message) as error:
        check_outputs("seq-7", outputs, {"output": TensorSpec(dim=2)})
    assert "seq-7" in str(error.value)
    check_outputs("seq-7", {"output": np.zeros((3, 2), "float32")}, {"output": TensorSpec(dim=2)})
