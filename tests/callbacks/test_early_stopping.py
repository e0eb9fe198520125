"""Early stopping decides from the recorded scores, also in a resumed run."""

from types import SimpleNamespace

import pytest

from returnn_hydra.callbacks.early_stopping import EarlyStopping
from returnn_hydra.engine.records import EpochRecord
from returnn_hydra.engine.scores import Score


def trainer_with(scores):
    records = [EpochRecord(epoch, 0.1, {"dev": {"ce": Score(s, 1.0)}}, epoch) for epoch, s in enumerate(scores, 1)]
    values = {record.epoch: record.scores["dev"]["ce"].mean for record in records}
    select = lambda record, score: values[record.epoch]  # noqa: E731
    return SimpleNamespace(records=records, stopping=False, selection_value=select)


@pytest.mark.parametrize(
    ("scores", "min_improvement", "stops"),
    [
        ([], 0.0, False),
        ([3.0, 2.0, 1.0], 0.0, False),
        ([1.0, 2.0], 0.0, False),
        ([1.0, 2.0, 1.5], 0.0, True),
        ([1.0, 2.0, 0.9], 0.0, False),
        ([1.0, 0.95, 0.9], 0.2, True),
        ([1.0, 0.95, 0.7], 0.2, False),
        ([1.0, 1.0, 1.0], 0.0, True),  # as good is no improvement
    ],
)
def test_stops_after_two_epochs_without_improvement(scores, min_improvement, stops):
    trainer = trainer_with(scores)
    EarlyStopping(patience=2, min_improvement=min_improvement).on_run_start(trainer)
    assert trainer.stopping is stops


def test_a_stopped_run_stays_stopped(command, capsys):
    words = ["task=train", "model.hidden_dim=2", "num_epochs=9", "callbacks=early_stopping", "name=run"]
    words += ["callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_improvement=100"]
    assert command(*words) == 0
    assert "Early stopping: no better score than" in capsys.readouterr().out
    assert command(*words) == 0
    assert "Start epoch" not in capsys.readouterr().out
