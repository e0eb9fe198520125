"""The state of another run, for `resume_from`: everything that a resumed run takes up, not only the weights."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from returnn_hydra.engine.checkpoint import SLOTS, Checkpoint, CheckpointStore
from returnn_hydra.engine.errors import NoCheckpointError
from returnn_hydra.engine.files import FileSystem
from returnn_hydra.engine.log import SUMMARY

NAME = re.compile(rf"(?P<prefix>.+)\.(?:\d{{3,}}|{'|'.join(map(re.escape, SLOTS))})")
SUFFIXES = (".opt.pt", ".pt", ".json")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OtherRun:
    """Where `resume_from` points to: a run's folder, its folder of checkpoints, or one checkpoint.

    A checkpoint is meant by its name or by any of its files: `checkpoints/model.003`, `checkpoints/model.003.pt`.
    """

    path: Path

    def load(self, disk: FileSystem, map_location: Any = "cpu") -> tuple[Checkpoint, Path]:
        """The checkpoint (of a folder: the newest valid one), and the folder with its run's scores.

        Raises:
            NoCheckpointError: there is none.
            DamagedStateError: it is damaged; of a folder: all of them are.
        """
        folder, prefix, name = self._place()
        store = CheckpointStore(folder, prefix=prefix, disk=disk)
        checkpoint = store.load_newest(map_location) if name is None else store.load_named(name, map_location)
        if checkpoint is None:
            raise NoCheckpointError(
                f"resume_from={self.path}: no checkpoint with a manifest ({prefix}.*.json) in {folder}; "
                "weights alone, also RETURNN's, are taken by init_from"
            )
        logger.log(SUMMARY, "Going on from %s of another run: %s", checkpoint.manifest.name, folder)
        return checkpoint, folder.parent if folder.name == "checkpoints" else folder

    def _place(self) -> tuple[Path, str, str | None]:
        """(folder of the checkpoints, prefix of their names, name of the one that is meant or None)."""
        if self.path.is_dir():
            inside = self.path / "checkpoints"
            return (inside if inside.is_dir() else self.path), "model", None
        name = next((self.path.name[: -len(end)] for end in SUFFIXES if self.path.name.endswith(end)), self.path.name)
        match = NAME.fullmatch(name)
        if match is None:
            raise NoCheckpointError(
                f"resume_from={self.path}: neither a folder nor a checkpoint; expected a run's folder, "
                "or a checkpoint such as outputs/RUN/checkpoints/model.003"
            )
        return self.path.parent, match["prefix"], name
