"""The checkpoints of a run: saved so that a crash at any instant leaves a valid one, and verified before they are used.

A checkpoint NAME is three files: `NAME.pt` (the model), `NAME.opt.pt` (the optimizer; both in RETURNN's layout) and
the manifest `NAME.json`. It is valid when the manifest is there and both files are as the manifest says. NAME is
`model.003` for the finished epoch 3, and `model.latest.a` or `.b` inside an epoch: two slots, one always valid.

Removing a checkpoint begins with renaming its manifest to `NAME.json.gone`: a crash in between never looks like damage.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from returnn_hydra.engine.errors import DamagedStateError, NoCheckpointError, StateError, StateReadError
from returnn_hydra.engine.files import (
    TEMPORARY,
    FileSystem,
    check_free_space,
    exists,
    explain_read,
    explain_write,
    read_bytes,
    remove,
    safe_name,
    sync_folder,
    write_text,
)
from returnn_hydra.engine.manifest import Manifest, Progress, seal, unseal
from returnn_hydra.engine.tensor_file import (
    check_finite,
    num_bytes,
    open_verified,
    read_tensors,
    write_tensors,
)

RUN_FILE = "run.json"
GONE = ".gone"
SLOTS = ("latest.a", "latest.b")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    manifest: Manifest
    model: dict[str, Any]
    """The model's state dict."""
    optimizer: dict[str, Any] | None
    """What was given to `save`; None: not saved, or not asked for."""

    @property
    def progress(self) -> Progress:
        return self.manifest.progress


@dataclass
class CheckpointStore:
    """The checkpoints in one folder. Saving needs the folder's lock (engine/lock.py): there is one writer."""

    folder: Path
    run_id: str | None = None
    """Whose checkpoints these must be; None: of any run, for reading only."""
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    """Goes into every manifest."""
    prefix: str = "model"
    may_be_infinite: Collection[str] = ()
    """Names of constant buffers such as attention masks that may hold infinity."""
    disk: FileSystem = field(default_factory=FileSystem)

    def __post_init__(self) -> None:
        safe_name(self.prefix)
        prefix = re.escape(self.prefix)
        slots = "|".join(re.escape(slot) for slot in SLOTS)
        self._epoch_manifest = re.compile(rf"{prefix}\.(\d{{3,}})\.json")
        self._any_manifest = re.compile(rf"({prefix}\.(?:\d{{3,}}|{slots}))\.json")
        self._gone = re.compile(rf"({prefix}\.(?:\d{{3,}}|{slots}))\.json{re.escape(GONE)}")
        self._unfinished = re.compile(
            rf"{prefix}\.(?:\d{{3,}}|{slots})(?:\.opt)?\.(?:pt|json)(?:{re.escape(GONE)})?{re.escape(TEMPORARY)}"
        )

    # --- saving

    def save_epoch(self, progress: Progress, model: Mapping[str, Any], optimizer: Mapping[str, Any] | None) -> Manifest:
        """Save a finished epoch as `model.NNN`; when this returns, it survives a power cut.

        Args:
            model: the model's state dict.
            optimizer: `{"optimizer": state_dict, "optimizer_class_name", "optimizer_opts", "param_names"}`, or None;
                maybe also "trained_parameters" (see training_tensors.py).

        Raises:
            NonFiniteError: something in the tensors is NaN or infinite; nothing is changed.
            StateWriteError: the disk refused; earlier checkpoints are intact.
        """
        if progress.batch is not None:
            raise ValueError(f"epoch {progress.epoch} is not finished: batch {progress.batch}")
        return self._save(self.epoch_name(progress.epoch), progress, model, optimizer)

    def save_latest(
        self, progress: Progress, model: Mapping[str, Any], optimizer: Mapping[str, Any] | None
    ) -> Manifest:
        """Save the state inside an epoch, over the older of the two slots; see `save_epoch`."""
        if progress.batch is None:
            raise ValueError(f"epoch {progress.epoch} is finished: use save_epoch")
        return self._save(self._slot_to_overwrite(), progress, model, optimizer)

    def _save(
        self, name: str, progress: Progress, model: Mapping[str, Any], optimizer: Mapping[str, Any] | None
    ) -> Manifest:
        if self.run_id is None:
            raise ValueError("a store without run_id is for reading only")
        self.check_finite(model, optimizer)
        header = {
            "epoch": progress.epoch,
            "step": progress.step,
            "effective_learning_rate": progress.learning_rate,
            "returnn_version": "returnn-hydra",
            "run_id": self.run_id,
        }
        contents = {f"{name}.pt": {"model": dict(model), **header}}
        if optimizer is not None:
            contents[f"{name}.opt.pt"] = {**optimizer, **header}
        with explain_write(self.disk, self.folder / name, 0):
            self.disk.make_folder(self.folder)
        self._remove(name)
        facts = {file: write_tensors(self.disk, self.folder / file, content) for file, content in contents.items()}
        sync_folder(self.disk, self.folder)  # before the manifest: what it names must be there
        manifest = Manifest(name, self.run_id, progress, self.fingerprint, facts)
        write_text(self.disk, self._path(name, ".json"), manifest.to_text())
        return manifest

    def check_finite(self, model: Mapping[str, Any], optimizer: Mapping[str, Any] | None) -> None:
        """
        Raises:
            NonFiniteError: names the tensors with NaN or infinity.
        """
        check_finite(model, "model", self.may_be_infinite)
        content = optimizer or {}
        check_finite(content.get("optimizer", {}), "optimizer")
        check_finite(content.get("trained_parameters", {}), "trained_parameters")

    def check_space(self, model: Mapping[str, Any], optimizer: Mapping[str, Any] | None, copies: int = 2) -> None:
        """
        Raises:
            StateWriteError: there is no space for so many checkpoints.
        """
        with explain_write(self.disk, self.folder, 0):
            self.disk.make_folder(self.folder)
        check_free_space(self.disk, self.folder, copies * (num_bytes(model) + num_bytes(optimizer)))

    def _slot_to_overwrite(self) -> str:
        """The older slot; but the newer one if that is damaged."""
        slots = [f"{self.prefix}.{slot}" for slot in SLOTS]
        present = [slot for slot in slots if exists(self.disk, self._path(slot, ".json"))]
        keep = next((manifest.name for manifest in self._read(present) if self.is_valid(manifest)), slots[1])
        return next(slot for slot in slots if slot != keep)

    # --- looking and loading

    def epoch_name(self, epoch: int) -> str:
        return f"{self.prefix}.{epoch:03d}"

    def epochs(self) -> list[int]:
        """The finished epochs that have a manifest, ascending; nothing is read."""
        return sorted(int(match.group(1)) for match in self._matches(self._epoch_manifest))

    def names(self) -> list[str]:
        """Every checkpoint that has a manifest; nothing is read."""
        return [match.group(1) for match in self._matches(self._any_manifest)]

    def manifests(self) -> Iterator[Manifest]:
        """Every readable manifest of this run, newest first; unreadable ones are reported in the log.

        Those of finished epochs are read only when it is their turn: a run may have thousands of them.
        """
        names = {f"{self.prefix}.{slot}" for slot in SLOTS}.intersection(self.names())
        slots = self._read(sorted(names))
        for epoch in reversed(self.epochs()):
            while slots and slots[0].progress.epoch > epoch:
                yield slots.pop(0)
            yield from self._read([self.epoch_name(epoch)])
        yield from slots

    def _read(self, names: list[str]) -> list[Manifest]:
        """The readable ones of these, newest first."""
        found = []
        for name in names:
            try:
                found.append(self.manifest(name))
            except StateError as error:
                logger.error("DAMAGED CHECKPOINT: %s", error)
        return sorted(found, key=lambda manifest: (manifest.progress.position, manifest.name), reverse=True)

    def manifest(self, name: str) -> Manifest:
        """
        Raises:
            DamagedStateError: it is damaged, renamed, or from another run.
            StateReadError: the operating system refused.
        """
        path = self._path(name, ".json")
        try:
            text = read_bytes(self.disk, path).decode()
        except UnicodeDecodeError as error:
            raise DamagedStateError(f"{path}: damaged: {error}") from error
        manifest = Manifest.from_text(text, str(path))
        expected = self.epoch_name(manifest.progress.epoch) if self._is_epoch(manifest) else name
        if manifest.name != name or expected != name:
            raise DamagedStateError(f"{path}: swapped: it is the manifest of {manifest.name}")
        if self.run_id is not None and manifest.run_id != self.run_id:
            raise DamagedStateError(f"{path}: from another run: {manifest.run_id}, this is {self.run_id}")
        if set(manifest.files) not in ({f"{name}.pt"}, {f"{name}.pt", f"{name}.opt.pt"}):
            raise DamagedStateError(f"{path}: names other files than its own: {sorted(manifest.files)}")
        return manifest

    def verify(self, manifest: Manifest) -> None:
        """Read the files again and compare them with the manifest.

        Raises:
            DamagedStateError: names the file that differs.
            StateReadError: the operating system refused.
        """
        for file, facts in manifest.files.items():
            with explain_read(self.folder / file):
                open_verified(self.disk, self.folder / file, facts).close()

    def is_valid(self, manifest: Manifest) -> bool:
        """Whether `verify` passes; damage is reported in the log."""
        try:
            self.verify(manifest)
        except StateError as error:
            logger.error("DAMAGED CHECKPOINT: %s", error)
            return False
        return True

    def load_newest(self, map_location: Any = "cpu") -> Checkpoint | None:
        """The newest valid checkpoint, to go on from; None when nothing was ever saved.

        Damaged ones are reported in the log, loudly, and left out.

        Raises:
            DamagedStateError: there are checkpoints, and none is valid.
        """
        for manifest in self.manifests():
            try:
                return self._load(manifest, map_location, with_optimizer=True)
            except (DamagedStateError, StateReadError) as error:
                logger.error("DAMAGED CHECKPOINT: %s. Falling back to an older one", error)
        if names := self.names():
            raise DamagedStateError(
                f"{self.folder}: no valid checkpoint, all are damaged: {', '.join(f'{name}.json' for name in names)}. "
                "Restore them from a copy, or delete them to start anew"
            )
        return None

    def load(self, epoch: int, map_location: Any = "cpu", with_optimizer: bool = False) -> Checkpoint:
        """The checkpoint of one finished epoch.

        Raises:
            NoCheckpointError: there is none.
            DamagedStateError: it is damaged.
        """
        name = self.epoch_name(epoch)
        if not exists(self.disk, self._path(name, ".json")):
            raise NoCheckpointError(
                f"{self.folder}: no checkpoint of epoch {epoch}, there are {self.epochs() or 'none'}"
            )
        return self._load(self.manifest(name), map_location, with_optimizer)

    def load_named(self, name: str, map_location: Any = "cpu") -> Checkpoint:
        """The checkpoint with this name (`model.003`, `model.latest.a`), with its optimizer.

        Raises:
            NoCheckpointError: there is none.
            DamagedStateError: it is damaged.
        """
        if not exists(self.disk, self._path(name, ".json")):
            raise NoCheckpointError(
                f"{self._path(name, '.json')}: no such manifest (there is: {', '.join(self.names()) or 'none'})"
            )
        return self._load(self.manifest(name), map_location, with_optimizer=True)

    def _load(self, manifest: Manifest, map_location: Any, with_optimizer: bool) -> Checkpoint:
        files = {
            file: read_tensors(self.disk, self.folder / file, facts, map_location)
            for file, facts in manifest.files.items()
            if with_optimizer or file == f"{manifest.name}.pt"
        }
        model = files[f"{manifest.name}.pt"].get("model")
        if not isinstance(model, dict):
            raise DamagedStateError(f"{self._path(manifest.name, '.pt')}: has no state dict under the key 'model'")
        return Checkpoint(manifest, model, files.get(f"{manifest.name}.opt.pt"))

    # --- removing

    def remove_epoch(self, epoch: int) -> None:
        """Delete the three files of an epoch."""
        self._remove(self.epoch_name(epoch))

    def remove_latest(self) -> None:
        """Delete both slots: at the end of the training, when the last epoch is saved."""
        for slot in SLOTS:
            self._remove(f"{self.prefix}.{slot}")

    def clean_up(self) -> None:
        """Finish what a crash left half done; call it at start, with the lock held."""
        for match in self._matches(self._gone):
            self._finish_removal(match.group(1))
        for match in self._matches(self._unfinished):
            remove(self.disk, self.folder / match.group())

    def _remove(self, name: str) -> None:
        manifest = self._path(name, ".json")
        with explain_write(self.disk, manifest, 0):
            if self.disk.size(manifest) is not None:
                self.disk.rename(manifest, self._path(name, ".json" + GONE))
                self.disk.fsync_folder(self.folder)
        self._finish_removal(name)

    def _finish_removal(self, name: str) -> None:
        for suffix in (".opt.pt", ".pt", ".json" + GONE):
            remove(self.disk, self._path(name, suffix))

    # --- names

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / (name + suffix)

    def _is_epoch(self, manifest: Manifest) -> bool:
        return manifest.progress.batch is None

    def _matches(self, pattern: re.Pattern[str]) -> list[re.Match[str]]:
        with explain_read(self.folder):
            names = self.disk.names(self.folder)
        return [match for name in names if (match := pattern.fullmatch(name))]


def run_id_of_folder(folder: Path, disk: FileSystem, prefix: str = "model") -> str:
    """The identity of the run that lives in this folder; a new one is made for a new folder. Needs the lock.

    Raises:
        DamagedStateError: `run.json` is damaged and the checkpoints don't agree on whose they are.
    """
    path = folder / RUN_FILE
    with explain_write(disk, path, 0):
        disk.make_folder(folder)
    if exists(disk, path):
        try:
            return str(unseal(read_bytes(disk, path).decode(), str(path))["run_id"])
        except (DamagedStateError, UnicodeDecodeError, KeyError) as error:
            logger.error("DAMAGED FILE: %s: %s. Taking the run's identity from its checkpoints", path, error)
    owners = {manifest.run_id for manifest in CheckpointStore(folder, prefix=prefix, disk=disk).manifests()}
    if len(owners) > 1:
        raise DamagedStateError(
            f"{folder}: checkpoints of several runs ({', '.join(sorted(owners))}) and no {RUN_FILE}"
        )
    run_id = owners.pop() if owners else uuid.uuid4().hex
    write_text(disk, path, seal({"run_id": run_id}))
    return run_id
