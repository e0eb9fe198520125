"""What MLflow shows is what scores.jsonl has; an interrupted run goes on as one run."""

import json
from pathlib import Path

import pytest

from returnn_hydra.callbacks.mlflow import MLflow
from returnn_hydra.engine.errors import Stopped

mlflow = pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")


def test_one_run_in_two_processes(command):
    words = ["task=train", "model.hidden_dim=2", "callbacks=mlflow", "name=group/run"]
    assert command(*words, "num_epochs=2") == 0
    assert command(*words, "num_epochs=3") == 0
    client = mlflow.MlflowClient(f"sqlite:///{Path('outputs/group/mlflow.db').resolve()}")
    experiment = client.get_experiment_by_name("returnn-hydra")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    records = [json.loads(line) for line in Path("outputs/group/run/scores.jsonl").read_text().splitlines()]
    shown = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "dev/ce")}
    assert shown == {record["epoch"]: record["scores"]["dev"]["ce"]["mean"] for record in records}
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["config.yaml"]
    assert not Path("mlruns").exists()


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ValueError("bad"), "FAILED"), (Stopped("SIGTERM"), "KILLED")]
)
def test_how_a_run_ended(tmp_path, error, status):
    callback = MLflow(tmp_path / "run", experiment="mine")
    callback.on_run_start(None)
    callback.on_run_end(None, error)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.info.status == status
