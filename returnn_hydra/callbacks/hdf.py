"""Forward callback: the outputs as an HDF file of RETURNN's layout."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from torch import nn

from returnn_hydra.batch import TensorSpec
from returnn_hydra.data.dataset import DataError
from returnn_hydra.data.hdf_writer import HDFWriter
from returnn_hydra.engine.callback import ForwardCallback, output_path
from returnn_hydra.engine.files import FileSystem, explain_write

logger = logging.getLogger(__name__)


class HDF(ForwardCallback):
    """Writes every sequence's outputs; the file gets its name when it is complete.

    Args:
        file: where to; default: <data set>.hdf in the run's forward folder, which replaces that of an earlier forward.
            A file that is named here and exists is an error.
        output: the output that becomes `inputs`, and is read as the stream `data`; the others keep their names.
        model_outputs: what the outputs are, where the user said so; default: as the first sequence looks.
    """

    def __init__(
        self,
        folder: Path,
        data_name: str,
        model_outputs: Mapping[str, TensorSpec],
        file: str | None = None,
        output: str = "output",
    ) -> None:
        self.path = output_path(folder, file, f"{data_name}.hdf")
        self.replace = file is None
        self.output = output
        self.model_outputs = dict(model_outputs)
        self._writer: HDFWriter | None = None
        self._bytes = 0

    def init(self, model: nn.Module) -> None:
        if not self.replace and self.path.exists():
            raise DataError(f"forward_callback.file={self.path}: the file exists")
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = HDFWriter(
                self.path, self.model_outputs or None, input_stream=self.output, overwrite=self.replace
            )

    def _explained(self) -> AbstractContextManager[None]:
        return explain_write(FileSystem(), self.path, self._bytes)

    def process_seq(self, seq_tag: str, outputs: Mapping[str, np.ndarray]) -> None:
        assert self._writer is not None
        if self.output not in outputs:
            raise DataError(f"{seq_tag}: no output '{self.output}', the forward step gives {sorted(outputs)}")
        self._bytes += sum(array.nbytes for array in outputs.values())
        with self._explained():
            self._writer.write(seq_tag, outputs)

    def finish(self) -> None:
        assert self._writer is not None
        with self._explained():
            self._writer.close()
        logger.info("Outputs: %s", self.path)
