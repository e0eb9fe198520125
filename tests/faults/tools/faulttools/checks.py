"""The quick form of every check by name: no violation for the real store, at least one for a mutant."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace

import torch

from faulttools import damage_at_rest, enumeration
from faulttools.simulated_disk import SimulatedDisk
from faulttools.small_trainer import FOLDER, content, make_store, train
from returnn_hydra.engine.errors import DamagedStateError, NonFiniteError, StateWriteError
from returnn_hydra.engine.manifest import Progress
from returnn_hydra.engine.retention import Retention

Violations = list[str]
BIG = {"weight": torch.zeros(3, 200_000)}
"""Larger than what is collected before a write, so that errors come up inside `torch.save`."""


def crashes() -> Violations:
    return enumeration.after_crashes(30, only_first=True).violations


def damage_and_crash() -> Violations:
    return enumeration.after_damage_and_crash(4, 20, only_first=True).violations


def bit_flips() -> Violations:
    return damage_at_rest.silent_damage(damage_at_rest.flips, 800).violations


def swaps() -> Violations:
    return damage_at_rest.swaps().violations


def refusals() -> Violations:
    return enumeration.after_refusals((errno.ENOSPC,), only_first=True, every=15).violations


def leftovers() -> Violations:
    """A finished run has the files of its kept epochs, and no others."""
    disk = SimulatedDisk()
    train(disk, 6)
    expected = {
        f"/run/model.{epoch}.{suffix}" for epoch in ("001", "005", "006") for suffix in ("pt", "opt.pt", "json")
    }
    found = set(disk.image()) - {"/run/run.json", "/run/scores.jsonl"}
    return [] if found == expected else [f"files {sorted(found)}"]


def all_damaged() -> Violations:
    """With checkpoints, and none of them valid, a restart must not begin anew."""
    image = enumeration.tell({}).image
    disk = SimulatedDisk.from_image({path: b"x" if path.endswith(".pt") else data for path, data in image.items()})
    try:
        with enumeration.complaints():
            make_store(disk).load_newest()
    except DamagedStateError as error:
        return [] if "model.004.json" in str(error) else [str(error)]
    return ["began anew"]


def falls_back_one_epoch() -> Violations:
    """However little is to be kept: damage of the newest epoch costs one epoch."""
    image = dict(enumeration.tell({}, 6).image)
    image["/run/model.006.pt"] = b"x"
    with enumeration.complaints():
        found = make_store(SimulatedDisk.from_image(image)).load_newest()
    return [] if found and found.progress.epoch == 5 else [f"fell back to {found and found.progress.epoch}"]


def deletes_nothing_it_needs() -> Violations:
    """The two newest are damaged: what is older must stay, although nothing else asks for it."""
    disk = SimulatedDisk()
    store = make_store(disk)
    for epoch in range(1, 5):
        store.save_epoch(Progress(epoch, None, epoch, 0.1), *content(epoch, 0.0))
    image = disk.image()
    store.disk = SimulatedDisk.from_image({**image, "/run/model.003.opt.pt": b"x", "/run/model.004.pt": b"x"})
    with enumeration.complaints():
        Retention(keep_last=1).apply(store, {})
        found = store.load_newest()
    return [] if found and found.progress.epoch == 2 else [f"found {found and found.progress.epoch}"]


def forged_manifests() -> Violations:
    """Sealed by the rules, but not what their names say."""
    image, violations = enumeration.tell({}).image, []
    manifest = make_store(SimulatedDisk.from_image(image)).manifest("model.004")
    forged = (
        replace(manifest, name="model.003"),
        replace(manifest, progress=replace(manifest.progress, epoch=5)),
        replace(manifest, files={**manifest.files, "../../etc/x.pt": manifest.files["model.004.pt"]}),
        replace(manifest, files={}),
    )
    for number, forgery in enumerate(forged):
        disk = SimulatedDisk.from_image({**image, "/run/model.004.json": forgery.to_text().encode()})
        try:
            make_store(disk).load(4)
            violations.append(f"forgery {number} was loaded")
        except DamagedStateError:
            pass
    return violations


def bad_numbers() -> Violations:
    violations = []
    for weight, moment in ((float("nan"), 0.0), (float("inf"), 0.0), (0.0, float("nan")), (0.0, float("-inf"))):
        disk = SimulatedDisk()
        try:
            make_store(disk).save_epoch(Progress(1, None, 1, 0.1), *content(weight, moment))
            violations.append(f"saved weight {weight}, moment {moment}")
        except NonFiniteError:
            violations += [path for path in disk.image() if "model" in path]
    return violations


def short_writes() -> Violations:
    disk = SimulatedDisk(short_writes=True)
    try:
        return [] if train(disk) == enumeration.tell({}).result else ["another result"]
    except StateWriteError as error:
        return [str(error)]


class LyingDisk(SimulatedDisk):
    """Says that it took everything, and loses the last byte."""

    def write(self, handle: int, data: memoryview) -> int:
        return super().write(handle, data[:-1]) + 1


def lying_disk() -> Violations:
    try:
        train(LyingDisk())
    except StateWriteError as error:
        return [] if "without an error" in str(error) else [str(error)]
    return ["a save that lost bytes returned"]


def refusals_in_torch_save() -> Violations:
    """The disk is full in the middle of a large tensor; the operations after that work."""
    violations = []
    for at in range(4, 16):
        disk = SimulatedDisk(torn_fault=True)
        store = make_store(disk)
        disk.count, disk.fault = (
            0,
            lambda number, kind, path, at=at: OSError(errno.ENOSPC, "") if number == at else None,
        )
        try:
            store.save_epoch(Progress(1, None, 1, 0.1), BIG, None)
        except StateWriteError as error:
            if "ENOSPC" not in str(error) or str(FOLDER) not in str(error):
                violations.append(f"unclear: {error}")
        except Exception as error:  # whatever torch.save makes of it
            violations.append(f"bare {error!r}")
        violations += [f"left {path}" for path in disk.image() if path.endswith(".tmp")]
    return violations


CHECKS: dict[str, Callable[[], Violations]] = {
    "crashes": crashes,
    "damage and crash": damage_and_crash,
    "bit flips": bit_flips,
    "swaps": swaps,
    "refusals": refusals,
    "leftovers": leftovers,
    "all damaged": all_damaged,
    "falls back one epoch": falls_back_one_epoch,
    "deletes nothing it needs": deletes_nothing_it_needs,
    "forged manifests": forged_manifests,
    "bad numbers": bad_numbers,
    "short writes": short_writes,
    "lying disk": lying_disk,
    "refusals in torch.save": refusals_in_torch_save,
}
