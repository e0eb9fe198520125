"""The manifest of a checkpoint: a JSON file, written last, that makes it valid and says what belongs to it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from returnn_hydra.engine.errors import DamagedStateError
from returnn_hydra.engine.files import FileFacts

FORMAT = "returnn-hydra checkpoint 1"
SEAL = "sha256"
KEYS = {
    "format",
    "name",
    "run_id",
    "epoch",
    "batch",
    "step",
    "learning_rate",
    "finite",
    "fingerprint",
    "files",
    "state",
}


@dataclass(frozen=True)
class Progress:
    """How far a run is, and what it must know to go on that is not a tensor."""

    epoch: int
    """The epoch that is finished, or being trained."""
    batch: int | None
    """How many of its batches are done; None: the epoch is finished."""
    step: int
    """Optimizer updates since the start of the run."""
    learning_rate: float
    state: Mapping[str, Any] = field(default_factory=dict)
    """Learning-rate control, scores, updater, callbacks, ..., as JSON types."""

    @property
    def position(self) -> tuple[int, float]:
        """Orders the checkpoints of a run."""
        return self.epoch, math.inf if self.batch is None else self.batch


@dataclass(frozen=True)
class Manifest:
    """What is known of a checkpoint without reading its tensors."""

    name: str
    """`model.003`, `model.latest.a`: the beginning of its files' names."""
    run_id: str
    progress: Progress
    fingerprint: Mapping[str, Any]
    """The configuration that a resumed run must share."""
    files: Mapping[str, FileFacts]
    """The files' names, with size and sha256."""

    def to_text(self) -> str:
        progress = self.progress
        values = {
            "format": FORMAT,
            "name": self.name,
            "run_id": self.run_id,
            "epoch": progress.epoch,
            "batch": progress.batch,
            "step": progress.step,
            "learning_rate": progress.learning_rate,
            "finite": True,
            "fingerprint": dict(self.fingerprint),
            "files": {name: {"bytes": facts.bytes, "sha256": facts.sha256} for name, facts in self.files.items()},
            "state": dict(progress.state),
        }
        return seal(values)

    @classmethod
    def from_text(cls, text: str, where: str) -> Manifest:
        """
        Raises:
            DamagedStateError: one character is not as it was written, or it is no manifest.
        """
        values = unseal(text, where)
        if values.get("format") != FORMAT or set(values) != KEYS or values["finite"] is not True:
            raise DamagedStateError(f"{where}: no manifest of the format {FORMAT!r}: {values.get('format')!r}")
        try:
            files = {name: FileFacts(int(file["bytes"]), str(file["sha256"])) for name, file in values["files"].items()}
            batch = None if values["batch"] is None else int(values["batch"])
            numbers = int(values["epoch"]), batch, int(values["step"]), float(values["learning_rate"])
            progress = Progress(*numbers, dict(values["state"]))
            return cls(values["name"], values["run_id"], progress, dict(values["fingerprint"]), files)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise DamagedStateError(f"{where}: no manifest: {error!r}") from error


def seal(values: Mapping[str, Any]) -> str:
    """JSON text with the sha256 of its other entries as last entry."""
    check_json(values, "state")
    body = _canonical(values)
    return _canonical({**values, SEAL: hashlib.sha256(body.encode()).hexdigest()})


def unseal(text: str, where: str) -> dict[str, Any]:
    """The values of a sealed text.

    Raises:
        DamagedStateError: the text is not byte for byte what `seal` wrote.
    """
    try:
        values = json.loads(text)
        if isinstance(values, dict):
            values.pop(SEAL, None)
            if seal(values) == text:
                return values
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedStateError(f"{where}: damaged: {error}") from error
    raise DamagedStateError(f"{where}: damaged: its {SEAL} does not fit")


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1, sort_keys=True) + "\n"


def check_json(value: Any, where: str) -> None:
    """
    Raises:
        TypeError: a value would not come back from JSON as the same value.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"{where}: key {key!r} is a {type(key).__name__}, JSON knows strings only")
            check_json(item, f"{where}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_json(item, f"{where}[{index}]")
    elif not isinstance(value, (str, int, float, type(None))):  # a numpy float64 is a float, and comes back as one
        raise TypeError(f"{where}: a {type(value).__name__} is no JSON type")
