#!rnn.py
"""A RETURNN config as it is: `python scripts/rnn.py docs/examples/returnn_config.py ++num_epochs 2`."""

import returnn.frontend as rf
import torch
from returnn.tensor import TensorDict
from torch import nn

task = "train"
backend = "torch"
device = "cpu"

train = {"class": "Task12AXDataset", "num_seqs": 100}
dev = {"class": "Task12AXDataset", "num_seqs": 20, "fixed_random_seed": 1}
extern_data = {"data": {"dim": 9}, "classes": {"dim": 2, "sparse": True}}

batch_size = 1000
max_seqs = 20
num_epochs = 5
optimizer = {"class": "adam"}
learning_rate = 0.01
learning_rate_control = "newbob"
learning_rate_file = "outputs/returnn_example/learning_rates"
model = "outputs/returnn_example/model"
log_verbosity = 3


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(9, 16, batch_first=True)
        self.output = nn.Linear(16, 2)

    def forward(self, data):
        return self.output(self.lstm(data)[0])


def get_model(**_):
    return Model()


def train_step(*, model: Model, extern_data: TensorDict, **_):
    data, classes = extern_data["data"], extern_data["classes"]
    logits = model(data.raw_tensor)
    targets = classes.raw_tensor.long()
    lengths = data.dims[1].dyn_size
    mask = torch.arange(targets.shape[1])[None] < lengths[:, None]
    loss = nn.functional.cross_entropy(logits[mask], targets[mask], reduction="none")
    errors = (logits.argmax(-1) != targets)[mask]
    rf.get_run_ctx().mark_as_loss(loss, "ce", dims=None)
    rf.get_run_ctx().mark_as_loss(errors, "fer", dims=None, as_error=True)
