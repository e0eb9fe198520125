"""The HDF files of `hdf_dump` layers, while a task runs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from returnn_hydra.data.hdf_writer import HDFWriter
from returnn_hydra.network.dumps import Dump

logger = logging.getLogger(__name__)


class Dumps:
    """Writes what the layers give. A context manager: the files get their names at its end, or go after an error."""

    def __init__(self) -> None:
        self._writers: dict[str, HDFWriter] = {}
        self._told = False

    def add(self, dumps: Iterable[Dump], seq_tags: Sequence[str]) -> None:
        """One batch.

        Raises:
            DataError: a file exists, or a sequence comes twice.
        """
        for dump in dumps:
            if dump.filename not in self._writers:
                path = Path(dump.filename)
                path.parent.mkdir(parents=True, exist_ok=True)
                labels = {"data": dump.labels} if dump.labels else None
                self._writers[dump.filename] = HDFWriter(path, dump.specs(), labels=labels)
            writer = self._writers[dump.filename]
            for tag, arrays in zip(seq_tags, dump.sequences(), strict=True):
                writer.write(tag, arrays)

    def leave_out(self, dumps: Sequence[Dump]) -> None:
        """In a training, which reads every sequence in every epoch."""
        if dumps and not self._told:
            names = ", ".join(dump.layer for dump in dumps)
            logger.warning("hdf_dump (%s): no file is written in a training; use task=eval, forward or search", names)
            self._told = True

    def __enter__(self) -> Dumps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for name, writer in self._writers.items():
            if kind is None:
                writer.close()
                logger.info("hdf_dump: %s", name)
            else:
                writer.abort()
        self._writers.clear()
