"""Scores and learning rates for MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from returnn_hydra.engine.callback import Callback
from returnn_hydra.engine.errors import Stopped
from returnn_hydra.engine.records import EpochRecord
from returnn_hydra.engine.trainer import Trainer
from returnn_hydra.extras import require


class MLflow(Callback):
    """Logs every score of every epoch, and the configuration as an artifact (extra: mlflow).

    A run that goes on after an interruption goes on in MLflow too. It is called as its folder.

    Args:
        folder: the run's.
        tracking_uri: where MLflow keeps its runs; default: `mlflow.db` beside the run folders, one for all of them.
        experiment: MLflow's name for a group of runs.
    """

    def __init__(self, folder: Path, tracking_uri: str | None = None, experiment: str = "returnn-hydra") -> None:
        self.folder = folder.resolve()
        self.tracking_uri = tracking_uri or f"sqlite:///{self.folder.parent / 'mlflow.db'}"
        self.experiment = experiment
        self._client: Any = None
        self._run_id: str | None = None

    def on_run_start(self, trainer: Trainer) -> None:
        self._client = require("mlflow", "mlflow", "callbacks.mlflow").MlflowClient(self.tracking_uri)
        if self._run_id is None:
            self._run_id = self._client.create_run(self._experiment_id(), run_name=self.folder.name).info.run_id
        else:
            self._client.update_run(self._run_id, status="RUNNING")
        config = self.folder / "config.yaml"
        if config.exists():
            self._client.log_artifact(self._run_id, str(config))

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(self.experiment, str(self.folder.parent / "mlflow_artifacts")))

    def on_epoch_end(self, trainer: Trainer, record: EpochRecord) -> None:
        for name, value in {**record.means(), "learning_rate": record.learning_rate}.items():
            self._client.log_metric(self._run_id, name, value, step=record.epoch)

    def on_run_end(self, trainer: Trainer, error: BaseException | None) -> None:
        if self._run_id is not None and self._client is not None:
            status = "FINISHED" if error is None else "KILLED" if isinstance(error, Stopped) else "FAILED"
            self._client.set_terminated(self._run_id, status)

    def state_dict(self) -> dict[str, Any]:
        return {"run_id": self._run_id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._run_id = state.get("run_id")
