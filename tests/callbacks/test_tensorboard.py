"""What TensorBoard shows is what scores.jsonl has."""

import json
from pathlib import Path

import pytest

event_files = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="the extra")


def test_scores_and_learning_rates(command):
    words = ["task=train", "model.hidden_dim=2", "callbacks=tensorboard", "name=run"]
    assert command(*words, "num_epochs=2") == 0
    assert command(*words, "num_epochs=3") == 0
    events = event_files.EventAccumulator("outputs/run/tensorboard").Reload()
    records = [json.loads(line) for line in Path("outputs/run/scores.jsonl").read_text().splitlines()]
    assert set(events.Tags()["scalars"]) >= {"train/ce", "dev/ce", "dev/error", "learning_rate"}
    for tag, values in {
        "learning_rate": [record["learning_rate"] for record in records],
        "dev/ce": [record["scores"]["dev"]["ce"]["mean"] for record in records],
    }.items():
        shown = events.Scalars(tag)
        assert [event.step for event in shown] == [1, 2, 3]
        assert [event.value for event in shown] == pytest.approx(values, rel=1e-6)
