"""Forward callback: one line of text per sequence."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from returnn_hydra.engine.callback import ForwardCallback, output_path
from returnn_hydra.engine.output_file import OutputFile

logger = logging.getLogger(__name__)


class Text(ForwardCallback):
    """Writes `{"seq_tag": ..., <output>: ...}` as JSON, one line per sequence.

    Args:
        file: where to; default: <data set>.jsonl in the run's forward folder. It appears when it is complete.
    """

    def __init__(self, folder: Path, data_name: str, file: str | None = None) -> None:
        self.path = output_path(folder, file, f"{data_name}.jsonl")
        self._file = OutputFile(self.path)

    def init(self, model: nn.Module) -> None:
        self._file.open()

    def process_seq(self, seq_tag: str, outputs: Mapping[str, np.ndarray]) -> None:
        values: dict[str, Any] = {name: array.tolist() for name, array in outputs.items()}
        self._file.write(json.dumps({"seq_tag": seq_tag, **values}) + "\n")

    def finish(self) -> None:
        self._file.commit()
        logger.info("Outputs: %s", self.path)
