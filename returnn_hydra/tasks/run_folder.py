"""The folder of a run: its configuration, log, result and what the other parts put into it."""

from __future__ import annotations

import json
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from returnn_hydra.config.compose import COMPOSED_FILE, CONFIG_FILE, OVERRIDES_FILE, Composed
from returnn_hydra.engine.files import FileSystem, write_text


@dataclass(frozen=True)
class RunFolder:
    """One run's files."""

    path: Path
    disk: FileSystem = FileSystem()

    @property
    def log_file(self) -> Path:
        return self.path / "run.log"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def save_config(self, config: Composed, overrides: list[str]) -> None:
        """config.yaml (resolved), composed.yaml and overrides.yaml (what `run=` starts from), environment.json."""
        resolved = OmegaConf.create(config.plain_values())
        write_text(self.disk, self.path / CONFIG_FILE, OmegaConf.to_yaml(resolved))
        write_text(self.disk, self.path / COMPOSED_FILE, OmegaConf.to_yaml(config.unresolved))
        write_text(self.disk, self.path / OVERRIDES_FILE, OmegaConf.to_yaml(OmegaConf.create(overrides)))
        write_text(self.disk, self.path / "environment.json", json.dumps(_environment(), indent=1) + "\n")


def _environment() -> dict[str, Any]:
    import h5py
    import numpy
    import torch

    return {
        "command": sys.argv,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": platform.node(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "h5py": h5py.__version__,
    }
