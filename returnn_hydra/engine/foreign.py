"""Checkpoints without a manifest: RETURNN's own, `load=FILE`, and copies of ours taken out of their folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from returnn_hydra.engine.errors import DamagedStateError, NoCheckpointError
from returnn_hydra.engine.files import FileSystem, exists, explain_read, read_bytes
from returnn_hydra.engine.manifest import Manifest
from returnn_hydra.engine.tensor_file import read_foreign_tensors, read_tensors


@dataclass(frozen=True)
class ModelFile:
    """What a `.pt` file holds; None: it does not say."""

    path: Path
    model: dict[str, Any]
    epoch: int | None
    step: int | None
    learning_rate: float | None
    run_id: str | None


def load_model_file(path: Path, disk: FileSystem, map_location: Any = "cpu") -> ModelFile:
    """Read a model's `.pt` file; the suffix may be left out. With a manifest beside it, that decides what is intact.

    Of `net/a` and `net/a.pt` the latter wins: the former may be a folder.

    Raises:
        NoCheckpointError: there is no such file.
        DamagedStateError: it is damaged, or holds no model.
    """
    with_suffix = path.with_name(path.name + ".pt")
    places = (path, with_suffix) if path.suffix == ".pt" else (with_suffix, path)
    found = next((file for file in places if exists(disk, file)), None)
    if found is None:
        raise NoCheckpointError(f"{path}: there is no such file, nor {path.name}.pt")
    content = _read(found, disk, map_location)
    model = content.get("model", content)
    if not isinstance(model, dict) or not any(isinstance(value, Tensor) for value in model.values()):
        raise DamagedStateError(
            f"{found}: no state dict under the key 'model' (its keys: {', '.join(map(str, content))})"
        )
    header = content if "model" in content else {}
    rate = header.get("effective_learning_rate")
    return ModelFile(found, model, header.get("epoch"), header.get("step"), rate, header.get("run_id"))


def _read(path: Path, disk: FileSystem, map_location: Any) -> dict[str, Any]:
    manifest_path = path.with_suffix(".json")
    if path.suffix == ".pt" and exists(disk, manifest_path):
        manifest = Manifest.from_text(read_bytes(disk, manifest_path).decode(errors="replace"), str(manifest_path))
        if path.name not in manifest.files:
            raise DamagedStateError(f"{manifest_path}: swapped: it is the manifest of {manifest.name}")
        return read_tensors(disk, path, manifest.files[path.name], map_location)
    return read_foreign_tensors(disk, path, map_location)


def foreign_epochs(folder: Path, disk: FileSystem, prefix: str = "model") -> list[int]:
    """The epochs that RETURNN saved here: with `.pt` and `.opt.pt`, without a manifest; ascending."""
    with explain_read(folder):
        names = set(disk.names(folder))
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d{{3,}})\.pt")
    stems = {name[: -len(".pt")]: int(match.group(1)) for name in names if (match := pattern.fullmatch(name))}
    return sorted(epoch for stem, epoch in stems.items() if f"{stem}.opt.pt" in names and f"{stem}.json" not in names)


def load_foreign_epoch(
    folder: Path, epoch: int, disk: FileSystem, prefix: str = "model", map_location: Any = "cpu"
) -> tuple[ModelFile, dict[str, Any]]:
    """RETURNN's checkpoint of an epoch: the model, and the content of its optimizer file.

    Raises:
        DamagedStateError: damaged, of two epochs, or the rest of an unfinished save of ours.
    """
    path = folder / f"{prefix}.{epoch:03d}.pt"
    file = load_model_file(path, disk, map_location)
    optimizer = read_foreign_tensors(disk, path.with_suffix(".opt.pt"), map_location)
    if file.run_id is not None:
        raise DamagedStateError(f"{path}: its save was not finished: there is no {path.with_suffix('.json').name}")
    if not file.epoch == optimizer.get("epoch") == epoch or file.step != optimizer.get("step"):
        raise DamagedStateError(
            f"{path}: swapped: epoch {file.epoch} and step {file.step}, "
            f"its optimizer file has epoch {optimizer.get('epoch')} and step {optimizer.get('step')}"
        )
    return file, optimizer
