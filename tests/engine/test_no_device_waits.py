"""No wait for the device at a step: losses and bad numbers are looked at every `log_every` batches."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from returnn_hydra.batch import Batch, Loss
from returnn_hydra.data.batching import Batching
from returnn_hydra.data.embedded import japanese_vowels
from returnn_hydra.data.loader import Loader
from returnn_hydra.data.order import SeqOrder
from returnn_hydra.engine.bad_batch import load_batch
from returnn_hydra.engine.errors import NonFiniteError
from returnn_hydra.engine.files import FileSystem
from returnn_hydra.engine.run_store import RunStore
from returnn_hydra.engine.trainer import Trainer
from returnn_hydra.engine.updater import Updater, UpdateRules
from returnn_hydra.engine.weight_average import WeightAverage
from returnn_hydra.optim.gradients import GradientRules
from returnn_hydra.optim.learning_rate_control import Constant

CPU = torch.device("cpu")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(12, 5)
        self.outer = nn.Linear(5, 9)

    def forward(self, features):
        return self.outer(self.inner(features).relu().mean(1))


def step(model: Model, batch: Batch):
    losses = nn.functional.cross_entropy(model(batch["data"]), batch["classes"][:, 0].long(), reduction="sum")
    return {"ce": Loss(losses, batch.num_seqs), "watched": Loss(losses.detach(), batch.num_seqs, as_error=True)}


def make(folder, defer, train_step=step, data=None, average=False, **rules):
    torch.manual_seed(5)
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    data = data or Loader(japanese_vowels("train"), None, SeqOrder("random"), Batching(max_seqs=10))
    options = UpdateRules(gradients=GradientRules(max_norm=1.0, max_value=0.1), **rules)
    ema = WeightAverage(model, 0.9) if average else None
    updater = Updater(model, optimizer, options, CPU, average=ema, defer_checks=defer)
    store = RunStore(folder)
    return Trainer(model, train_step, updater, Constant(learning_rate=0.01), data, {}, store, CPU, 2, log_every=10)


def run(trainer):
    with trainer.store:
        trainer.run()
    return trainer


@pytest.mark.parametrize(
    "rules", [{}, {"grad_accum_steps": 3}, {"normalization": "sum"}, {"amp": "bfloat16"}, {"average": True}], ids=str
)
def test_a_step_waits_for_nothing(tmp_path, waits, rules):
    trainer = make(tmp_path, True, **rules)
    train_batch, read = trainer.train_batch, trainer.read_numbers

    def counting_train_batch(batch, is_last):
        with waits:
            waits.now = "step"
            return train_batch(batch, is_last)

    def counting_read():
        with waits:
            waits.now = "read"
            read()

    trainer.train_batch, trainer.read_numbers = counting_train_batch, counting_read
    run(trainer)
    assert waits.found["step"] == 0
    assert waits.found["read"] > 0  # the counter counts


def test_the_counter_sees_the_check_of_every_update(tmp_path, waits):
    trainer = make(tmp_path, False)
    with waits:
        run(trainer)
    assert sum(waits.found.values()) >= trainer.updater.num_updates


def test_the_same_training_to_the_bit(tmp_path):
    at_once, later = run(make(tmp_path / "a", False)), run(make(tmp_path / "b", True))
    assert at_once.updater.num_updates == later.updater.num_updates == 50
    for name, value in at_once.model.state_dict().items():
        assert torch.equal(value, later.model.state_dict()[name])
    assert [record.scores for record in at_once.records] == [record.scores for record in later.records]


def bad_step(number, what):
    """A step whose batch `number` (counted over the run) is bad."""
    calls = []

    def bad(model, batch):
        calls.append(list(batch.seq_tags))
        losses = step(model, batch)
        if len(calls) == number:
            if what == "loss":
                losses["ce"] = replace(losses["ce"], sum=losses["ce"].sum * float("nan"))
            else:
                model.inner.weight.register_hook(lambda gradient: gradient * float("inf"))
        return losses

    return bad, calls


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("number", [1, 13, 25, 28])
def test_bad_numbers_stop_the_run_and_nothing_bad_is_saved(tmp_path, number, what):
    bad, calls = bad_step(number, what)
    trainer = make(tmp_path, True, bad)
    with pytest.raises(NonFiniteError) as caught:
        run(trainer)
    message = str(caught.value)
    assert f"update {number}:" in message
    assert ", ".join(calls[number - 1][:8]) in message
    assert ("inner.weight" if what == "gradient" else "'ce': nan") in message
    assert len(calls) <= number + 10
    (file,) = (tmp_path / "bad_batches").glob("*.pt")
    assert load_batch(file, FileSystem()).seq_tags == calls[number - 1]
    saved = [path.name for path in sorted(Path(tmp_path / "checkpoints").glob("model.*.json"))]
    assert saved == (["model.001.json"] if number > 25 else [])


def test_a_save_inside_of_an_epoch_looks_first(tmp_path):
    bad, _ = bad_step(7, "loss")
    trainer = make(tmp_path, True, bad)
    trainer.store.every_steps = 4
    with pytest.raises(NonFiniteError, match="update 7:"):
        run(trainer)
    saved = list(Path(tmp_path / "checkpoints").glob("model.latest.*.json"))
    assert len(saved) == 1
    assert '"batch": 4' in saved[0].read_text()


@pytest.mark.parametrize("rules", [{"on_nonfinite": "skip"}, {"on_nonfinite": "rollback"}, {"amp": "float16"}], ids=str)
def test_rules_that_go_on_look_at_every_update(tmp_path, rules):
    assert not make(tmp_path, True, **rules).updater.defers_checks
